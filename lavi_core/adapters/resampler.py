"""A perceiver resampler: learned queries ask the states, so that any number of tokens becomes a fixed one."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..conditioning import HiddenStates
from ..config import AdapterConfig
from .adapter import Adapter
from .attention import Attention

EPS = 1e-6


class ResamplerAdapter(Adapter):
    """ELLA's connector (arXiv 2403.05135) without the timestep: ``tokens`` learned latents, ``depth`` blocks in which
    they attend to themselves and to the real tokens, then an MLP; pre-norm, at ``inner_width``.

    outer_norms: LayerNorm of the states, whose channels differ by orders of magnitude in decoders, and of what is
    given; ELLA has neither.
    """

    own_tokens = True
    options = MappingProxyType({"tokens": 64, "depth": 6, "heads": None, "outer_norms": True})

    def __init__(self, config: AdapterConfig):
        super().__init__(config)
        assert config.tokens is not None and config.depth is not None and config.heads is not None
        width, normed = config.inner_width, config.outer_norms
        self.norm_in = nn.LayerNorm(config.in_width, eps=EPS) if normed else nn.Identity()
        self.proj_in = nn.Linear(config.in_width, width)
        self.latents = nn.Parameter(width**-0.5 * torch.randn(config.tokens, width))
        self.blocks = nn.ModuleList(ResamplerBlock(width, config.heads, self.norm) for _ in range(config.depth))
        self.proj_out = nn.Identity() if width == config.out_width else nn.Linear(width, config.out_width)
        self.norm_out = nn.LayerNorm(config.out_width, eps=EPS) if normed else nn.Identity()

    @staticmethod
    def norm(width: int) -> nn.Module:
        """What stands before attention and MLP."""
        return nn.LayerNorm(width, eps=EPS)

    def attend(self, hidden: HiddenStates, timestep: Tensor | None) -> Tensor:
        return self.resample(hidden, self.latents)

    def resample(self, hidden: HiddenStates, latents: Tensor, *time: Tensor) -> Tensor:
        """latents: [N W] or [B N W], what the queries begin as. time: what the norms are told. -> [B N C]"""
        states = self.proj_in(self.norm_in(hidden.states))
        latents = latents.expand(len(states), -1, -1)
        mask = torch.cat([hidden.mask.new_ones(latents.shape[:2]), hidden.mask], dim=1)
        for block in self.blocks:
            latents = block(latents, states, mask, *time)
        return self.norm_out(self.proj_out(latents))

    def last_map(self) -> tuple[nn.Linear, nn.LayerNorm | None]:
        last = self.proj_out if isinstance(self.proj_out, nn.Linear) else self.blocks[-1].get_submodule("mlp.proj")
        assert isinstance(last, nn.Linear)
        return last, self.norm_out if isinstance(self.norm_out, nn.LayerNorm) else None


class ResamplerBlock(nn.Module):
    """norm: width -> a module of (x [B N W], what it is told of the time)."""

    def __init__(self, width: int, heads: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.norm_latents, self.norm_states, self.norm_mlp = norm(width), norm(width), norm(width)
        self.attn = Attention(width, heads)
        self.mlp = SquaredReLUMLP(width)
        self.dropout = nn.Dropout(0.0)

    def forward(self, latents: Tensor, states: Tensor, mask: Tensor, *time: Tensor) -> Tensor:
        """latents [B N W], states [B T W], mask [B N+T] over both. -> [B N W]"""
        asking = self.norm_latents(latents, *time)
        heard = torch.cat([asking, self.norm_states(states, *time)], dim=1)
        latents = latents + self.dropout(self.attn(asking, heard, mask))
        return latents + self.dropout(self.mlp(self.norm_mlp(latents, *time)))


class SquaredReLUMLP(nn.Module):
    """Linear to four times the width -> ReLU squared (arXiv 2109.08668) -> Linear."""

    def __init__(self, width: int):
        super().__init__()
        self.fc = nn.Linear(width, 4 * width)
        self.proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.relu(self.fc(x)).square())
