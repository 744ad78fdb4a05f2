"""A batch's captions as the pair takes them: tokens, or the hidden states of a language model that stays as it is."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from ...lavi_core.conditioning import HiddenStates
from ..loop import parallel
from ..models.pair import Pair
from ..recipe import Recipe
from .batch import Said
from .text_states import StateCache, why_not

log = logging.getLogger(__name__)


class Saying:
    """Captions -> tokens without needless padding; or, of a frozen language model, hidden states, computed once."""

    def __init__(self, recipe: Recipe, pair: Pair, output: Path, device: torch.device):
        self.recipe, self.pair, self.device = recipe, pair, device
        self.states: StateCache | None = None
        if recipe.language.train != "frozen" or not recipe.language.states_gb:
            return
        reason = "a sharded model runs on all processes together" if parallel.is_sharded() else why_not(recipe.prompt)
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
        self.states = StateCache(folder, facts, recipe.prompt, self._compute, recipe.language.states_gb)

    def __call__(self, captions: Sequence[str]) -> Said:
        if self.states is not None:
            return self.states.get(captions)
        return self.pair.encoder.tokenize(captions, self.recipe.prompt).trimmed(self.recipe.prompt)

    def flush(self) -> None:
        """To disk with each state of the run: resumed, it goes on to the bit."""
        if self.states is not None:
            self.states.flush()

    def _compute(self, captions: Sequence[str]) -> HiddenStates:
        tokens = self.pair.encoder.tokenize(captions, self.recipe.prompt).to(self.device)
        # Autocast is set for each thread, and this one is not the training's.
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            return self.pair.encoder(tokens, self.recipe.prompt)
