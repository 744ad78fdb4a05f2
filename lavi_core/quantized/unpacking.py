"""Modules that are no plain linear maps, whose weights stay as quantised blocks and are dequantised while they run.

The experts of a mixture (one weight of three dimensions), the transposed maps of GPT-2, maps with a ``forward`` of
their own (Falcon, I-BERT): their code is left as it is, and finds dense weights. So it takes a dense copy of one
module's weights for as long as that runs, and a gradient through it would keep that copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from .formats import BlockFormat
from .modules import Quantized

FEW = 2**12  # values: a smaller stack is none of maps


@dataclass(frozen=True)
class Packed:
    """A quantised weight, wherever it is kept. blocks: [... bytes] uint8."""

    blocks: nn.Parameter
    format: BlockFormat

    @property
    def shape(self) -> tuple[int, ...]:
        *rows, width = self.blocks.shape
        return *rows, width // self.format.bytes * self.format.values

    def __getitem__(self, rows: slice) -> Tensor:
        """The values of a few rows, in float32."""
        return self.format.dense(self.blocks[rows])


class Unpacking(nn.Module):
    """Put before a module's class. formats: of the blocks of each weight that is kept so, by its name; the blocks
    themselves are the parameter NAME_blocks. In a state dict they stand under the weight's own name."""

    formats: dict[str, BlockFormat]
    unpacked: dict[str, Tensor]  # while it runs

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.unpacked = {name: self.dense(name) for name in self.formats}
        try:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.unpacked = {}

    def dense(self, name: str) -> Tensor:
        """The weight itself, made anew at each call."""
        dtype = self.get_buffer(f"{name}_stand_in").dtype
        return self.formats[name].dense(self.get_parameter(f"{name}_blocks"), dtype)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self.formats:
            destination[f"{prefix}{name}"] = destination.pop(f"{prefix}{name}_blocks")


def may_unpack(module: nn.Module, name: str, weight: Tensor) -> bool:
    """Whether a weight is multiplied with the states, as far as can be told: a map of any class, or a stack of them.

    Not a router's: rounded, it chooses other experts. Not a convolution's, nor a small table.
    """
    if "router" in type(module).__name__.lower():
        return False
    if weight.ndim > 2:
        stack = weight.numel() >= FEW and min(weight.shape) > 1
        return stack and not isinstance(module, nn.modules.conv._ConvNd)
    fields = ("in_features", "out_features"), ("nx", "nf")
    return name == "weight" and weight.ndim == 2 and any(all(hasattr(module, f) for f in pair) for pair in fields)


def unpack_when_run(module: nn.Module, name: str, blocks: Tensor, row: BlockFormat, dtype: torch.dtype) -> None:
    """Turn ``module`` in place into one that keeps this weight as ``blocks``, [... bytes] uint8."""
    del module._parameters[name]
    formats = {**getattr(module, "formats", {}), name: row}
    original = type(module).__mro__[2] if isinstance(module, Unpacking) else type(module)
    module.__class__ = _kind(original, tuple(formats))
    assert isinstance(module, Unpacking)
    module.formats, module.unpacked = formats, {}
    module.register_parameter(f"{name}_blocks", nn.Parameter(blocks, requires_grad=False))
    module.register_buffer(f"{name}_stand_in", torch.empty(1, dtype=dtype, device=blocks.device), persistent=False)


@cache
def _kind(kind: type, names: tuple[str, ...]) -> type:
    """The class of these weights, each of them a property."""
    weights = {name: property(lambda self, name=name: _weight(self, name)) for name in names}
    return type(f"Unpacking{kind.__name__}", (Unpacking, kind), weights)


def _weight(module: Unpacking, name: str) -> Tensor:
    found = module.unpacked.get(name)
    return module.dense(name) if found is None else found  # who asks from outside gets a copy


def packed(model: nn.Module) -> Iterator[tuple[str, Packed]]:
    """Every quantised weight of a model, under the path that it would have as a parameter; one that several modules
    share is given once."""
    seen: set[int] = set()
    for path, module in model.named_modules():
        rows = {"weight": ("blocks", module.format)} if isinstance(module, Quantized) else {}
        if isinstance(module, Unpacking):
            rows = {name: (f"{name}_blocks", row) for name, row in module.formats.items()}
        for name, (kept, row) in rows.items():
            blocks = module.get_parameter(kept)
            if id(blocks) not in seen:
                seen.add(id(blocks))
                yield f"{path}.{name}" if path else name, Packed(blocks, row)
