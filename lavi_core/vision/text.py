"""How a network hears its context: what becomes of padding, and up to which length zeros are put in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..conditioning import Conditioning
from ..prompt import PromptRecipe


@dataclass(frozen=True, kw_only=True)
class TextRule:
    """masked: what becomes of the tokens that a bridge's mask leaves out (``prompt.vision_mask``; a bridge without one
    has no such tokens, whatever padding it gives is heard):
        "masked": the network is given the mask, and every token stays in its place;
        "left_out": nothing of them is heard, as if the prompt had been given alone: the network gets the others from
            position 0 on, and the mask;
        "zeroed": they are zeros behind the others, and attended;
        "refused": the network attends to whatever it is given, so such a bridge is not trained.
    unmasked: this many zeros right behind the others are heard with them.
    length: zeros are put in up to this many tokens, behind the others or, ``side`` = "left", before them, and attended.
    longest: tokens that the network has positions for. None = any number.
    """

    masked: Literal["masked", "left_out", "zeroed", "refused"] = "masked"
    unmasked: int = 0
    length: int | None = None
    side: Literal["left", "right"] = "right"
    longest: int | None = None

    @property
    def limit(self) -> int | None:
        """The most tokens that are heard; None = any number."""
        return self.longest or self.length

    def check(self, prompt: PromptRecipe, name: str, tokens: int | None = None, beside: int = 0) -> None:
        """Raise ValueError for a prompt recipe that the network of this name cannot hear. tokens: that an adapter gives
        of its own, all of them to be attended; None = the prompt's. beside: of an own encoder that is heard too."""
        longest = self.limit
        key, given = ("prompt.max_length", prompt.max_length) if tokens is None else ("adapter.tokens", tokens)
        if longest is not None and given + beside > longest:
            more = f" beside {beside} tokens of the own encoder" if beside else ""
            raise ValueError(
                f"{key} is {given}{more}, the vision model ({name}) hears at most {longest} tokens: set {key} = "
                f"{longest - beside} or less"
            )
        if self.masked == "refused" and prompt.vision_mask and tokens is None:
            raise ValueError(
                f"prompt.vision_mask is true, the vision model ({name}) takes no mask and attends to every token: set "
                "prompt.vision_mask = false"
            )

    def hear(self, heard: Conditioning) -> Conditioning:
        """What the network is given of a bridge's conditioning; the pooled vector as it is. Raises ValueError for more
        tokens than it hears, and for a mask that it cannot take."""
        longest, tokens = self.limit, heard.context.shape[1]
        if longest is not None and tokens > longest:
            raise ValueError(
                f"the bridge gives {tokens} tokens, the vision model hears at most {longest}: shorten the prompt, or "
                "cut it at fewer tokens"
            )
        context, mask = heard.context, heard.mask
        if mask is not None and self.masked == "refused":
            raise ValueError("the bridge masks tokens, the vision model attends to every token it is given")
        if mask is not None and self.masked != "masked":
            context, mask = _gathered(context, mask, self.side)
            if self.masked == "zeroed":
                context, mask = context * mask.unsqueeze(-1).to(context.dtype), None
            elif self.unmasked:
                context = pad(context * mask.unsqueeze(-1).to(context.dtype), (0, 0, 0, self.unmasked))
                count = mask.sum(1, keepdim=True) + self.unmasked
                mask = torch.arange(tokens + self.unmasked, device=mask.device) < count
        if self.length is not None and tokens < self.length:
            more = self.length - tokens
            ends = (more, 0) if self.side == "left" else (0, more)
            context = pad(context, (0, 0, *ends))
            mask = None if mask is None else pad(mask, ends, value=True)
        return Conditioning(context, mask, heard.pooled)


MASKED = TextRule()


def _gathered(context: Tensor, mask: Tensor, side: str) -> tuple[Tensor, Tensor]:
    """The tokens of the mask at one end, in their order: at the start, or at the end where zeros go to the left."""
    order = (mask if side == "left" else ~mask).int().argsort(dim=1, stable=True)
    return context.gather(1, order.unsqueeze(-1).expand_as(context)), mask.gather(1, order)


def pooled_error(width: int, pooled: Tensor | None) -> ValueError | None:
    """What is wrong with a pooled vector for a network that takes one of this width."""
    if pooled is not None and pooled.shape[-1] == width:
        return None
    given = "none" if pooled is None else f"one of width {pooled.shape[-1]}"
    return ValueError(
        f"the vision model takes a pooled vector of width {width}, the bridge gives {given}: use a bridge that was "
        "trained with this vision model"
    )


def says(config: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    return all(config.get(key) == value for key, value in facts.items())
