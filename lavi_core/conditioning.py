"""The two dataclasses passed on: a language model's hidden states, and the conditioning of a vision model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class HiddenStates(NamedTuple):
    """What a language model says."""

    states: Tensor  # [B T D] float
    mask: Tensor  # [B T] bool, True = a real token


@dataclass(frozen=True)
class Conditioning:
    """What a vision model hears through its cross-attention."""

    context: Tensor  # [B T C] float
    mask: Tensor | None = None  # [B T] bool; None = every position is attended
    pooled: Tensor | None = None  # [B P] float
