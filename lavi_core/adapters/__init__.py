"""Adapters: the small trained part between a language model's states and a vision model's context."""

from __future__ import annotations

from typing import Any

from ..config import AdapterConfig
from ..registry import Registry
from .adapter import OPTIONS, Adapter, check_options
from .attention import HEAD_WIDTH
from .compressor import CompressorAdapter
from .identity import IdentityAdapter
from .linear import LinearAdapter
from .mlp import MLPAdapter
from .perceiver import PerceiverAdapter
from .projection import ProjectionAdapter
from .refiner import RefinerAdapter
from .resampler import ResamplerAdapter
from .row_refiner import RowRefinerAdapter
from .seeded_resampler import SeededResamplerAdapter
from .timestep_resampler import TimestepResamplerAdapter
from .token_queries import TokenQueriesAdapter

ADAPTERS: Registry[type[Adapter]] = Registry(
    "adapter",
    {
        "mlp": MLPAdapter,
        "linear": LinearAdapter,
        "identity": IdentityAdapter,
        "resampler": ResamplerAdapter,
        "timestep_resampler": TimestepResamplerAdapter,
        "refiner": RefinerAdapter,
        "perceiver": PerceiverAdapter,
        "compressor": CompressorAdapter,
        "projection": ProjectionAdapter,
        "token_queries": TokenQueriesAdapter,
        "seeded_resampler": SeededResamplerAdapter,
        "row_refiner": RowRefinerAdapter,
    },
)


def build(config: AdapterConfig) -> Adapter:
    """The adapter that ``config`` describes, in float32 with fresh weights."""
    return ADAPTERS[config.kind](config)


def configure(
    kind: str,
    *,
    in_width: int,
    out_width: int,
    inner: int | None = None,
    pooled_width: int | None = None,
    layers: int | None = None,
    **options: Any,
) -> AdapterConfig:
    """The config of an adapter between two widths; what is None is filled in: the kind's own defaults, the authors'
    inner width, or of kinds with attention the width that is given, and heads of 64 channels.

    Raises ValueError for an option that the kind does not have.
    """
    known = ADAPTERS[kind].options
    check_options(kind, known, options)
    if inner is None:
        inner = out_width if "heads" in known else inner_width(in_width, out_width)
    values = dict(known) | {name: value for name, value in options.items() if value is not None}
    if "heads" in known and values["heads"] is None:
        values["heads"] = max(1, inner // HEAD_WIDTH)
    widths = {"in_width": in_width, "inner_width": inner, "out_width": out_width, "pooled_width": pooled_width}
    return AdapterConfig(kind=kind, layers=layers, **widths, **values)


def inner_width(in_width: int, out_width: int) -> int:
    """The authors' choice in all three released bridges: half of the two widths' sum."""
    return (in_width + out_width) // 2


__all__ = [
    "ADAPTERS",
    "OPTIONS",
    "Adapter",
    "CompressorAdapter",
    "IdentityAdapter",
    "LinearAdapter",
    "MLPAdapter",
    "PerceiverAdapter",
    "ProjectionAdapter",
    "RefinerAdapter",
    "ResamplerAdapter",
    "RowRefinerAdapter",
    "SeededResamplerAdapter",
    "TimestepResamplerAdapter",
    "TokenQueriesAdapter",
    "build",
    "check_options",
    "configure",
    "inner_width",
]
