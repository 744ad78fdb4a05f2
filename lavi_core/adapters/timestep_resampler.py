"""The resampler that also hears the timestep: ELLA's timestep-aware semantic connector (arXiv 2403.05135)."""

from __future__ import annotations

import math
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..conditioning import HiddenStates
from ..config import AdapterConfig
from .resampler import EPS, ResamplerAdapter


class TimestepResamplerAdapter(ResamplerAdapter):
    """As ``ResamplerAdapter``, with every norm inside scaled and shifted by the timestep, and the latents moved by it.
    Without ``outer_norms`` and with ``inner_width`` = ``out_width`` it is ELLA's to the number.

    timestep_channels: of the sinusoids, an even number; they are embedded at ``inner_width``.
    """

    hears_timestep = True
    options = MappingProxyType({**ResamplerAdapter.options, "timestep_channels": 320})

    def __init__(self, config: AdapterConfig):
        super().__init__(config)
        assert config.timestep_channels is not None
        width = config.inner_width
        self.time_embedding = TimestepEmbedding(config.timestep_channels, width)
        self.time_shift = nn.Linear(width, width)  # of the latents

    @staticmethod
    def norm(width: int) -> nn.Module:
        return AdaLayerNorm(width)

    def attend(self, hidden: HiddenStates, timestep: Tensor | None) -> Tensor:
        assert timestep is not None
        time = F.silu(self.time_embedding(timestep.to(hidden.states.device).reshape(-1, 1)))  # [B 1 W] or [1 1 W]
        return self.resample(hidden, self.latents + self.time_shift(time), time)


class AdaLayerNorm(nn.Module):
    """LayerNorm without weights, then shift and scale from an embedding; it begins as the former (arXiv 2212.09748)."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, 2 * width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x [B N W], time [B 1 W] or [1 1 W], after its SiLU. -> [B N W]"""
        shift, scale = self.linear(time).chunk(2, dim=-1)
        return F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale) + shift


class TimestepEmbedding(nn.Module):
    """Sinusoids, cosines first (diffusers' ``Timesteps`` with flip_sin_to_cos and no frequency shift), then an MLP."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        if channels % 2:
            raise ValueError(f"adapter.timestep_channels must be even, a sine and a cosine each, got {channels}")
        self.channels = channels
        self.linear_1 = nn.Linear(channels, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, timestep: Tensor) -> Tensor:
        """[B 1] -> [B 1 W]"""
        half = self.channels // 2
        place = torch.arange(half, dtype=torch.float32, device=timestep.device)
        angle = timestep.float().unsqueeze(-1) * torch.exp(-math.log(10000) * place / half)
        return self.linear_2(F.silu(self.linear_1(torch.cat([angle.cos(), angle.sin()], dim=-1))))
