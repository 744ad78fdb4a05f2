"""A batch's captions as the pair takes them: tokens, or the cached text states of a frozen language model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from ...lavi_core.conditioning import HiddenStates
from ...lavi_core.language import TokenBatch
from ..models.pair import Pair
from ..recipe import Recipe
from .text_states import TextStateCache, why_uncacheable

log = logging.getLogger(__name__)

TextInput = TokenBatch | HiddenStates  # captions on their way into the language model, or text states out of it


class TextInputs:
    """Captions -> tokens without needless padding; or, of a frozen language model, text states, computed once.

    sharded: whether the language model's weights are spread over the processes, which must then run it together.
    """

    def __init__(self, recipe: Recipe, pair: Pair, output: Path, device: torch.device, sharded: bool):
        self.recipe, self.pair, self.device = recipe, pair, device
        self.cache: TextStateCache | None = None
        if recipe.language.train != "frozen" or not recipe.language.states_gb:
            return
        reason = "a sharded model runs on all processes together" if sharded else why_uncacheable(recipe.prompt)
        if reason:
            log.warning("the frozen language model runs at every step: %s", reason)
            return
        facts = {
            "language_model": pair.language_config.fingerprint,
            "dtype": str(next(pair.encoder.parameters()).dtype),
            "precision": recipe.precision,
            "device": device.type,
        }
        folder = recipe.data.cache or output / "latents"
        self.cache = TextStateCache(folder, facts, recipe.prompt, self._compute, recipe.language.states_gb)

    def __call__(self, captions: Sequence[str]) -> TextInput:
        if self.cache is not None:
            return self.cache.get(captions)
        return self.pair.encoder.tokenize(captions, self.recipe.prompt).trimmed(self.recipe.prompt)

    def flush(self) -> None:
        """Write new text states to disk, with each checkpoint of the run: resumed, it goes on to the bit."""
        if self.cache is not None:
            self.cache.flush()

    def _compute(self, captions: Sequence[str]) -> HiddenStates:
        tokens = self.pair.encoder.tokenize(captions, self.recipe.prompt).to(self.device)
        # Autocast is set for each thread, and this one is not the training's.
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            return self.pair.encoder(tokens, self.recipe.prompt)


def to_device(text: TextInput, device: torch.device) -> TextInput:
    return text.to(device) if isinstance(text, TokenBatch) else HiddenStates(*(t.to(device) for t in text))
