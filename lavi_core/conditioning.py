"""What is passed on: a language model's hidden states, and the conditioning of a vision model, fixed or in time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad


class HiddenStates(NamedTuple):
    """What a language model says."""

    states: Tensor  # [B T D] float; where several layers are handed on, they lie side by side on the width
    mask: Tensor  # [B T] bool, True = a real token
    # [B Q] long, the prompts as ids of a second tokenizer, or [B R 3], their rows (see ``row_refiner``); -1 behind a
    # shorter one
    queries: Tensor | None = None


@dataclass(frozen=True)
class Conditioning:
    """What a vision model hears through its cross-attention."""

    context: Tensor  # [B T C] float
    mask: Tensor | None = None  # [B T] bool; None = every position is attended
    pooled: Tensor | None = None  # [B P] float


@dataclass(frozen=True)
class TimedConditioning:
    """What an adapter that hears the timestep makes of hidden states, another ``Conditioning`` at each timestep; the
    language model has spoken once.

    adapt: (states, timestep, own) -> Conditioning, see ``Bridge.adapt``. rows: which row of the states each row of the
    conditioning is made of; None = each of its own. own: what the own encoder of a bridge that is heard beside one
    says, a row for each of the states.
    """

    hidden: HiddenStates
    adapt: Callable[[HiddenStates, Tensor, Conditioning | None], Conditioning]
    rows: Tensor | None = None  # [B] long
    own: Conditioning | None = None

    def at(self, timestep: Tensor) -> Conditioning:
        """timestep: [] or one for each row of the states, as ``Adapter.forward`` has it."""
        found, rows = self.adapt(self.hidden, timestep, self.own), self.rows
        if rows is None:
            return found
        mask, pooled = (None if part is None else part[rows] for part in (found.mask, found.pooled))
        return Conditioning(found.context[rows], mask, pooled)


Heard = Conditioning | TimedConditioning


def stack_states(parts: Sequence[HiddenStates]) -> HiddenStates:
    """Batches of states as one batch: zeros behind the shorter ones, which the mask leaves out."""
    counts, width = [len(part.mask) for part in parts], max(part.mask.shape[1] for part in parts)
    states = parts[0].states.new_zeros(sum(counts), width, parts[0].states.shape[2])
    mask = parts[0].mask.new_zeros(sum(counts), width)
    for part, rows, masks in zip(parts, states.split(counts), mask.split(counts), strict=True):
        rows[:, : part.mask.shape[1]], masks[:, : part.mask.shape[1]] = part.states, part.mask
    return HiddenStates(states, mask, stack_queries([part.queries for part in parts]))


def stack_queries(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Batches of ``HiddenStates.queries`` as one batch: -1 behind the shorter ones."""
    some = [part for part in parts if part is not None]
    width = max((part.shape[1] for part in some), default=0)
    ends = [(0, 0) * (part.ndim - 2) + (0, width - part.shape[1]) for part in some]
    return torch.cat([pad(part, end, value=-1) for part, end in zip(some, ends, strict=True)]) if some else None


def asked(queries: Tensor) -> Tensor:
    """Which of ``HiddenStates.queries`` are a prompt's own, and not behind it. -> [B Q] bool"""
    return (queries if queries.ndim == 2 else queries[..., 0]) >= 0


def stack(parts: Sequence[Conditioning]) -> Conditioning:
    """Batches of conditionings as one batch: zeros behind the shorter ones, and a mask that leaves them out wherever
    there are any."""
    counts, first = [len(part.context) for part in parts], parts[0]
    width = max(part.context.shape[1] for part in parts)
    context = first.context.new_zeros(sum(counts), width, first.context.shape[2])
    mask = torch.zeros(sum(counts), width, dtype=torch.bool, device=context.device)
    for part, rows, heard in zip(parts, context.split(counts), mask.split(counts), strict=True):
        length = part.context.shape[1]
        rows[:, :length] = part.context
        heard[:, :length] = True if part.mask is None else part.mask
    pooled = None if first.pooled is None else torch.cat([part.pooled for part in parts if part.pooled is not None])
    return Conditioning(context, None if bool(mask.all()) else mask, pooled)
