"""How large contexts are, and how far apart those of different captions: the bridge's, and the own text encoder's.

A context that is much smaller or larger than the own encoder's, or one that is nearly the same whatever the caption,
cannot steer the picture.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from ...lavi_core.language import TextEncoder
from ...lavi_core.prompt import PromptRecipe
from ..models import named
from ..recipe import Recipe

log = logging.getLogger(__name__)

TINY = 1e-12


@dataclass(frozen=True)
class ContextMeasure:
    """Of the real tokens of some captions; padding is left out, whether the vision model hears it or not. The tokens
    that an adapter makes of its own are all real.

    size: root mean square over all entries of all tokens. spread: root mean square, over captions and channels, of the
    distance of a caption's mean token from the mean of these, in units of ``size``: 0 = all captions sound alike.
    empty_size: that of the tokens of "". empty_distance: root mean square over channels of the distance of the mean
    token of "" from the captions' mean, in units of ``size``.
    """

    size: float
    spread: float
    empty_size: float
    empty_distance: float

    def plain(self) -> dict[str, float]:
        return asdict(self)


@dataclass
class Contexts:
    """Gathers contexts batch by batch. means: the mean token of each caption, [C] float64 on the CPU."""

    means: list[Tensor] = field(default_factory=list)
    squares: float = 0.0
    entries: int = 0

    def add(self, context: Tensor, mask: Tensor) -> None:
        """context: [B T C] of any float dtype. mask: [B T] bool, True = a real token, one at least in each row."""
        for row, real in zip(context, mask, strict=True):
            tokens = row[real].cpu().double()  # [t C]
            self.means.append(tokens.mean(0))
            self.squares += float(tokens.square().sum())
            self.entries += tokens.numel()

    @property
    def size(self) -> float:
        return (self.squares / max(self.entries, 1)) ** 0.5

    def measure(self, empty: Contexts) -> ContextMeasure:
        """empty: the context of "" alone."""
        means, unit = torch.stack(self.means), max(self.size, TINY)
        middle = means.mean(0)
        return ContextMeasure(
            size=self.size,
            spread=_rms(means - middle) / unit,
            empty_size=empty.size,
            empty_distance=_rms(empty.means[0] - middle) / unit,
        )


def own_context(recipe: Recipe, captions: Sequence[str], width: int, device: torch.device) -> ContextMeasure | None:
    """The measure of the vision model's own text encoder, ``text_encoder/`` in its folder, which is loaded for it and
    freed. None, and why in the log, where there is none, it cannot be loaded, or the vision model takes more than its
    states: contexts of another ``width``.
    """
    part = named.vision(recipe.vision.model) / "text_encoder"
    if not part.is_dir():
        log.info("there is no %s: the context is measured without the own text encoder's beside it", part)
        return None
    batch_size, max_length = recipe.validation.batch_size, recipe.prompt.max_length
    dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
    encoder = None
    try:
        if (found := TextEncoder.skeleton(part).config.hidden_size) != width:
            raise ValueError(f"it gives width {found}, the vision model takes {width}")
        encoder = TextEncoder.load(part, dtype=dtype).to(device)
        prompt = PromptRecipe(max_length=min(max_length, encoder.positions or max_length))
        every, empty = Contexts(), Contexts()
        with torch.no_grad():
            for start in range(0, len(captions), batch_size):
                tokens = encoder.tokenize(captions[start : start + batch_size], prompt).to(device)
                every.add(*encoder(tokens, prompt)[:2])
            empty.add(*encoder(encoder.tokenize([""], prompt).to(device), prompt)[:2])
    except ValueError as error:
        log.warning("the context is measured without that of %s beside it: %s", part, error)
        return None
    finally:
        del encoder
        gc.collect()  # modules refer to each other in circles
    return every.measure(empty)


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())
