"""Linear maps and embeddings whose weights stay as quantised blocks and are dequantised when they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .formats import BlockFormat
from .stand_in import StandIn


class _InBlocks(StandIn):
    why = "is kept as quantised blocks; load the language model with its weights dense"


class Quantized(nn.Module):
    """What both have in common.

    blocks: [rows bytes] uint8, a parameter: moved with the module, cast by nothing.
    weight: what code that only asks for a dtype, a device or a shape may read; who computes with it is refused.
    In a state dict the blocks stand under the name ``weight``.
    """

    blocks: nn.Parameter
    format: BlockFormat
    stand_in: Tensor  # [1 1], of the dtype that the weight would have
    rows: int
    columns: int

    @property
    def weight(self) -> Tensor:
        return self.stand_in.expand(self.rows, self.columns).as_subclass(_InBlocks)

    def dense(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The weight itself, [rows columns], made anew at each call."""
        return self.format.dense(self.blocks.to(device), dtype)

    def __getitem__(self, rows: slice) -> Tensor:
        """The values of a few rows, in float32. -> [rows columns]"""
        return self.format.dense(self.blocks[rows])

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = destination.pop(f"{prefix}blocks")

    def extra_repr(self) -> str:
        return f"{self.rows}, {self.columns}, {self.format.name}"


class QuantizedLinear(Quantized, nn.Linear):  # pyright: ignore[reportIncompatibleVariableOverride]
    """Differentiable in its input: what backward needs is the blocks, not the dequantised weight."""

    def forward(self, input: Tensor) -> Tensor:
        kind = input.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype
        bias = self.shift(dtype, input.device)
        weight = partial(self.dense, dtype, input.device)
        if torch.is_grad_enabled() and (input.requires_grad or (bias is not None and bias.requires_grad)):
            return _Product.apply(input.to(dtype), bias, weight)
        return F.linear(input.to(dtype), weight(), bias)

    def shift(self, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """The bias, [rows], if there is one."""
        return None if self.bias is None else self.bias.to(device, dtype)


class QuantizedEmbedding(Quantized, nn.Embedding):  # pyright: ignore[reportIncompatibleVariableOverride]
    """Only the rows that are looked up are dequantised."""

    def forward(self, input: Tensor) -> Tensor:
        return self.look_up(input)

    def look_up(self, ids: Tensor) -> Tensor:
        """[...] -> [... columns]"""
        found = self.blocks[ids.to(self.blocks.device)].to(ids.device)  # [... bytes]
        return self.format.dense(found, self.stand_in.dtype)


class _Product(torch.autograd.Function):
    """x @ weight.T + bias for a frozen weight that is dequantised once more in backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, weight: Callable[[], Tensor]) -> Tensor:
        ctx.weight = weight
        return F.linear(x, weight(), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (grad,) = grads
        to_x = grad @ ctx.weight().to(grad.dtype) if ctx.needs_input_grad[0] else None
        return to_x, grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None, None


def takes_blocks(module: nn.Module) -> bool:
    """Whether a weight of this module can stay quantised: a linear map that is nothing more, or any embedding (those
    of Gemma only scale what ``nn.Embedding`` gives)."""
    return type(module) is nn.Linear or (isinstance(module, nn.Embedding) and module.max_norm is None)


def put_blocks(module: nn.Module, blocks: Tensor | nn.Parameter, row: BlockFormat, dtype: torch.dtype) -> None:
    """Turn ``module`` in place into its quantised kind. blocks: [rows bytes] uint8. dtype: see ``Quantized.stand_in``.

    Raises ValueError where the blocks do not have the weight's shape.
    """
    weight = module.weight
    assert isinstance(weight, Tensor) and takes_blocks(module)
    rows, columns = weight.shape
    if tuple(blocks.shape) != (rows, row.row_bytes(columns)):
        raise ValueError(
            f"{row.name} blocks of {tuple(blocks.shape)} bytes were given for a weight of {rows} x {columns}, which "
            f"takes {rows} x {row.row_bytes(columns)}"
        )
    del module._parameters["weight"]
    module.__class__ = _quantized_kind(type(module))
    assert isinstance(module, Quantized)
    module.format, module.rows, module.columns = row, rows, columns
    module.blocks = blocks if isinstance(blocks, nn.Parameter) else nn.Parameter(blocks, requires_grad=False)
    module.register_buffer(
        "stand_in", torch.full((1, 1), float("nan"), dtype=dtype, device=blocks.device), persistent=False
    )


@cache
def _quantized_kind(kind: type) -> type:
    ours = QuantizedLinear if issubclass(kind, nn.Linear) else QuantizedEmbedding
    return ours if kind in (nn.Linear, nn.Embedding) else type(f"Quantized{kind.__name__}", (kind, ours), {})


def quantized(model: nn.Module) -> Iterator[tuple[str, Quantized]]:
    """The quantised modules of a model, by their paths."""
    return ((path, module) for path, module in model.named_modules() if isinstance(module, Quantized))
