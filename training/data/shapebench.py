"""A data set of procedural ShapeBench pictures, rendered when they are read."""

from __future__ import annotations

import hashlib
import json

import numpy as np

from ..recipe import DataSection
from .sources import IndexedSource


class ShapeBenchSource(IndexedSource):
    """``count`` pictures of ShapeBench. A picture depends on (seed, index) alone; it is captioned anew each epoch."""

    changing_captions = True

    def __init__(self, section: DataSection):
        from ..shapebench import CATEGORIES, VOCABULARIES

        if section.count < 1:
            raise ValueError(f"data.count is the number of ShapeBench pictures to draw, got {section.count}")
        self.section = section
        self.vocabulary = VOCABULARIES[section.vocabulary]
        mix = section.mix or dict.fromkeys(CATEGORIES, 1.0)
        unknown = set(mix) - set(CATEGORIES)
        if unknown:
            raise ValueError(f"data.mix names {sorted(unknown)}; the categories are {', '.join(CATEGORIES)}")
        self.categories = list(mix)
        self.weights = np.array([mix[c] for c in self.categories]) / sum(mix.values())
        self._facts = [section.seed, self.vocabulary.name, section.resolution, sorted(mix.items()), "shapebench-1"]

    def __len__(self) -> int:
        return self.section.count

    def name(self, index: int) -> str:
        return f"ShapeBench {self.section.vocabulary} seed {self.section.seed} picture {index}"

    def print_of(self, indices: range) -> str:
        return hashlib.sha256(json.dumps([*self._facts, indices.start, indices.stop]).encode()).hexdigest()

    def scene(self, index: int):
        from ..shapebench import sample_scene

        rng = np.random.default_rng([self.section.seed, index])
        category = self.categories[int(rng.choice(len(self.categories), p=self.weights))]
        return sample_scene(rng, category, self.vocabulary, "train")

    def image(self, index: int) -> np.ndarray:
        from ..shapebench import render

        return render(self.scene(index), self.section.resolution)

    def caption(self, index: int, epoch: int) -> str:
        return self._caption(index, epoch, "train")

    def plain_caption(self, index: int, epoch: int) -> str:
        return self._caption(index, epoch, "test")

    def _caption(self, index: int, epoch: int, split: str) -> str:
        from ..shapebench import caption

        # The frame is drawn first, so that both kinds of caption share it.
        rng = np.random.default_rng([self.section.seed, index, 1, epoch])
        return caption(self.scene(index), rng, split, vocabulary=self.vocabulary)
