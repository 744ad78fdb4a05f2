"""The two dataclasses passed on: a language model's hidden states, and the conditioning of a vision model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class HiddenStates(NamedTuple):
    """What a language model says."""

    states: Tensor  # [B T D] float; where several layers are handed on, they lie side by side on the width
    mask: Tensor  # [B T] bool, True = a real token


@dataclass(frozen=True)
class Conditioning:
    """What a vision model hears through its cross-attention."""

    context: Tensor  # [B T C] float
    mask: Tensor | None = None  # [B T] bool; None = every position is attended
    pooled: Tensor | None = None  # [B P] float


def stack(parts: Sequence[Conditioning]) -> Conditioning:
    """Conditionings of one prompt each as one batch: zeros behind the shorter ones, and a mask that leaves them out
    wherever there are any."""
    lengths = [part.context.shape[1] for part in parts]
    first, width = parts[0], max(lengths)
    context = first.context.new_zeros(len(parts), width, first.context.shape[2])
    mask = torch.zeros(len(parts), width, dtype=torch.bool, device=context.device)
    for row, (part, length) in enumerate(zip(parts, lengths, strict=True)):
        context[row, :length] = part.context[0]
        mask[row, :length] = True if part.mask is None else part.mask[0]
    pooled = None if first.pooled is None else torch.cat([part.pooled for part in parts if part.pooled is not None])
    return Conditioning(context, None if bool(mask.all()) else mask, pooled)
