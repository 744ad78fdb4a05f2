"""The base class of adapters: hidden states in, conditioning out, and an optional head for a pooled vector."""

from __future__ import annotations

from torch import Tensor, nn

from ..conditioning import Conditioning, HiddenStates
from ..config import AdapterConfig


class Adapter(nn.Module):
    """A kind of adapter says how one token's state becomes one token's context (``context``); the rest is here."""

    def __init__(self, config: AdapterConfig):
        super().__init__()
        self.config = config
        self.pooled = None if config.pooled_width is None else PooledHead(config.in_width, config.pooled_width)

    def context(self, states: Tensor) -> Tensor:
        """[B T D] -> [B T C]"""
        raise NotImplementedError

    def forward(self, hidden: HiddenStates) -> Conditioning:
        pooled = None if self.pooled is None else self.pooled(hidden)
        return Conditioning(self.context(hidden.states), hidden.mask, pooled)


class PooledHead(nn.Module):
    """LayerNorm -> mean over the real tokens -> Linear, for vision models that take a pooled vector (SDXL).

    The mean is masked: padding must not thin out a short prompt.
    """

    def __init__(self, in_width: int, pooled_width: int):
        super().__init__()
        self.norm = nn.LayerNorm(in_width, eps=1e-5)
        self.proj = nn.Linear(in_width, pooled_width)

    def forward(self, hidden: HiddenStates) -> Tensor:  # [B P]
        weight = hidden.mask.unsqueeze(-1).to(hidden.states.dtype)
        total = (self.norm(hidden.states) * weight).sum(1)
        return self.proj(total / weight.sum(1).clamp(min=1))
