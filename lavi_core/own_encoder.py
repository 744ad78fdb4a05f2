"""Two ears: a bridge's context and that of the vision model's own text encoder, one after the other on the tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from .conditioning import Conditioning
from .config import OwnEncoderConfig
from .language.prompt_weights import aligned


def together(said: Conditioning, own: Conditioning | None, config: OwnEncoderConfig | None) -> Conditioning:
    """What the vision model hears: a bridge's context [B T C] and its own encoder's [B O C] -> [B O+T C].

    own: cast to the bridge's dtype. Its pooled vector is heard where it gives one, else the bridge's. config: the
    bridge's ``own_encoder``. Raises ValueError where only one of ``own`` and ``config`` is given.
    """
    if config is None or own is None:
        check_given(own is not None, config)
        return said
    given = Conditioning(own.context.to(said.context.dtype), own.mask, own.pooled)
    first, last = (given, said) if config.place == "before" else (said, given)
    mask = None
    if first.mask is not None or last.mask is not None:
        mask = torch.cat([_attended(first), _attended(last)], dim=1)
    pooled = said.pooled if given.pooled is None else given.pooled.to(given.context.dtype)
    return Conditioning(torch.cat([first.context, last.context], dim=1), mask, pooled)


def check_given(given: bool, config: OwnEncoderConfig | None) -> None:
    """Raise ValueError for a bridge that is not heard as it was trained. given: whether an own encoder speaks too."""
    if config is None and given:
        raise ValueError(
            "this bridge was trained to be heard alone, and an own encoder is to be heard beside it: leave that out, "
            "or train a bridge with [own_encoder] in its recipe"
        )
    if config is not None and not given:
        raise ValueError(
            f"this bridge was trained beside the vision model's own text encoder ({config.name}), which says nothing "
            "here: give its context too"
        )


def at_strength(told: Conditioning, empty: Conditioning, strength: float) -> Conditioning:
    """empty + strength * (told - empty), context and pooled vector: the rule of prompt weights, for a whole ear; at 0
    it hears the empty prompt. empty: of one row, or as many as ``told``; brought to its length by ``aligned``."""
    if strength == 1:
        return told
    blank = aligned(empty.context, _attended(empty)[0], told.context.shape[1])

    def between(a: Tensor, b: Tensor) -> Tensor:
        return b + strength * (a - b)

    pooled = told.pooled
    if pooled is not None and empty.pooled is not None:
        pooled = between(pooled, empty.pooled)
    return Conditioning(between(told.context, blank), told.mask, pooled)


def _attended(part: Conditioning) -> Tensor:
    if part.mask is not None:
        return part.mask
    return torch.ones(part.context.shape[:2], dtype=torch.bool, device=part.context.device)
