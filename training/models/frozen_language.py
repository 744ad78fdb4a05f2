"""A frozen language model whose weights are in memory only while states are computed with them."""

from __future__ import annotations

import gc
from pathlib import Path

import torch

from ...lavi_core.language import TextEncoder
from ...lavi_core.language.folder import check_weights
from ...lavi_core.prompt import PromptRecipe
from .layers import drop_layers, drop_tensors, unused_modules


class FrozenLanguage:
    """encoder: config, fingerprint, tokenizer and the tree of modules, without a tensor in it. files: what the weights
    are read from, by ``load``, as often as they are needed.
    """

    def __init__(self, path: Path, dtype: torch.dtype, prompt: PromptRecipe):
        """Raises ValueError, with the sentence of ``TextEncoder.load``, for a model that it would refuse."""
        TextEncoder.verify(path)
        self.path, self.dtype, self.prompt = path, dtype, prompt
        self.files = [path] if path.is_file() else check_weights(path)
        self.loaded: TextEncoder | None = None
        self.encoder = TextEncoder.skeleton(path)
        drop_tensors(self.encoder.model)  # what is on the meta device cannot move to another with the pair
        found = self.encoder.config
        if found.fingerprint is None or "weights" not in (found.facts or {}):  # its files have other names than it
            self.encoder.config = self.load().config

    def load(self) -> TextEncoder:
        """The model with its weights, without the layers that the recipe never runs; read once until ``release``.

        Raises ValueError for a prompt recipe that gives wrong states with this model.
        """
        if self.loaded is None:
            # dense: a quantised weight would be dequantised at every pass
            encoder = TextEncoder.load(self.path, dtype=self.dtype, weights="dense")
            encoder.check_recipe(self.prompt)  # of the whole model
            drop_layers(encoder, unused_modules(encoder, self.prompt.hidden_states))
            self.loaded = encoder
        return self.loaded

    def release(self) -> None:
        """Free the weights."""
        self.loaded = None
        gc.collect()  # modules refer to each other in circles
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
