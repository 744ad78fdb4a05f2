"""Dropout as it is trained with: on a CPU one random number is enough for four elements."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn


def drop_out(x: Tensor, p: float) -> tuple[Tensor, Tensor | None]:
    """(m * x, where m is not 0), m being 0 with probability p and else 1 / (1 - p); None where nothing drops out."""
    if not p:
        return x, None
    if not x.is_cpu or torch.compiler.is_compiling():
        return torch.native_dropout(x, p, True)
    # torch draws a number of 64 bits an element on a CPU. Here one is enough for four, and p as near as 16 bits tell.
    drawn = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    least = min(max(round(p * 2**16), 1), 2**16 - 1) - 2**15
    kept = drawn.clamp_(least - 1, least).sub_(least - 1)  # of the same dtype all through: a cast of bool costs more
    mask = kept.as_strided(x.shape, torch.empty_like(x).stride())
    return (x * mask.to(x.dtype)).mul_(1 / (1 - p)), mask


def drop_out_(x: Tensor, mask: Tensor, p: float) -> Tensor:
    """m * x, in the place of x where it can be."""
    if mask.dtype == torch.bool:
        return torch.ops.aten.native_dropout_backward(x, mask, 1 / (1 - p))
    return x.mul_(mask.to(x.dtype)).mul_(1 / (1 - p))


def add_dropped_(total: Tensor, x: Tensor, mask: Tensor, p: float) -> Tensor:
    """total + m * x, in the place of total."""
    factor = mask if mask.dtype == torch.bool else mask.to(x.dtype)
    return total.addcmul_(x, factor, value=1 / (1 - p))


def draw_less(model: nn.Module) -> None:
    """Let the dropout layers of a model draw so. Their shares may still be changed."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.forward = partial(_forward, module)


def _forward(layer: nn.Dropout, input: Tensor) -> Tensor:
    return drop_out(input, layer.p if layer.training else 0.0)[0]
