"""What the vision model's own encoder says of captions, where a bridge is heard beside it: computed once and kept."""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from ...lavi_core.conditioning import Conditioning, HiddenStates
from ...lavi_core.config import OwnEncoderConfig
from ...lavi_core.language.folder import check_weights
from ..models import named
from ..models.own_encoder import OwnEncoder, parts
from ..recipe import Recipe
from .content_hash import content_hash
from .text_states import TextStateCache

log = logging.getLogger(__name__)


class OwnStates:
    """Captions -> ``Conditioning`` on the CPU, in the dtype that frozen models compute in. Beside the latents up to
    ``own_encoder.states_gb``; the encoder is in memory only while it is asked."""

    def __init__(self, recipe: Recipe, ear: OwnEncoderConfig, output: Path, device: torch.device):
        self.ear, self.device = ear, device
        self.path = named.teacher(recipe.own_encoder.model)
        self.dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
        self.encoder: OwnEncoder | None = None
        folder = Path(recipe.data.cache or output / "latents")
        files = [file for part in parts(self.path) for file in check_weights(part)]
        facts = {
            "own encoder": [encoder.fingerprint for encoder in ear.encoders],
            "weights": content_hash(files, folder),
            "facts": [encoder.facts for encoder in ear.encoders],
            "dtype": str(self.dtype),
            "device": device.type,
        }
        self.cache = TextStateCache(folder, facts, ear.prompt, self._compute, recipe.own_encoder.states_gb)

    def __call__(self, captions: Sequence[str]) -> Conditioning:
        states, mask, _ = self.cache.get(captions)
        pooled, rows = None, self._pooled_rows
        if rows:
            states, pooled = states[:, :-rows], states[:, -rows:].flatten(1)[:, : self.ear.pooled_width]
        return Conditioning(states, mask if self.ear.prompt.vision_mask else None, pooled)

    def release(self) -> None:
        """Free the encoder; what is asked after all has it loaded again."""
        self.encoder = None
        gc.collect()  # modules refer to each other in circles
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    def _pooled_rows(self) -> int:
        """The pooled vector is kept as tokens behind the others, the last one filled up with zeros."""
        return -(-(self.ear.pooled_width or 0) // self.ear.width)

    def _compute(self, captions: Sequence[str]) -> HiddenStates:
        if self.encoder is None:
            self.encoder = OwnEncoder.load(self.path).to(self.device).eval()
        said = self.encoder.heard(captions, self.ear.prompt)
        context, mask = said.context, said.mask
        if said.pooled is not None:
            more = said.pooled.new_zeros(len(context), self._pooled_rows * context.shape[2])
            more[:, : said.pooled.shape[1]] = said.pooled
            context = torch.cat([context, more.unflatten(1, (-1, context.shape[2]))], dim=1)
        whole = torch.ones(context.shape[:2], dtype=torch.bool, device=context.device)
        return HiddenStates(context.to(self.dtype), whole if mask is None else mask)
