"""Adapters: the small trained part between a language model's states and a vision model's context."""

from __future__ import annotations

from ..config import AdapterConfig
from ..registry import Registry
from .adapter import Adapter
from .identity import IdentityAdapter
from .linear import LinearAdapter
from .mlp import MLPAdapter

ADAPTERS: Registry[type[Adapter]] = Registry(
    "adapter", {"mlp": MLPAdapter, "linear": LinearAdapter, "identity": IdentityAdapter}
)


def build(config: AdapterConfig) -> Adapter:
    """The adapter that ``config`` describes, in float32 with fresh weights."""
    return ADAPTERS[config.kind](config)


def inner_width(in_width: int, out_width: int) -> int:
    """The authors' choice in all three released bridges: half of the two widths' sum."""
    return (in_width + out_width) // 2


__all__ = ["ADAPTERS", "Adapter", "IdentityAdapter", "LinearAdapter", "MLPAdapter", "build", "inner_width"]
