"""Sample pictures and ShapeBench scores during training."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...lavi_core.conditioning import Heard
from ...lavi_core.files import write_bytes
from ..data.text_inputs import TextInputs, to_device
from ..models.pair import Pair, eval_mode
from ..models.picture_grid import png
from ..models.pipeline import Pipeline
from ..recipe import Recipe


class SampleGrids:
    """The recipe's prompts as one grid, and its bench prompts as scores, always on the same noise.

    output: None = nothing is written, by a process that draws because a sharded model needs all of them to.
    """

    def __init__(self, recipe: Recipe, pair: Pair, vae, text_inputs: TextInputs, output: Path | None):
        from ..shapebench import CATEGORIES, VOCABULARIES, prompts

        self.recipe, self.pair, self.text_inputs, self.output = recipe, pair, text_inputs, output
        self.pipeline = Pipeline(self._condition, pair.vision_model, vae, recipe.precision)
        self.bench = {}
        if recipe.sample.bench:
            vocabulary = VOCABULARIES[recipe.data.vocabulary]
            self.bench = {
                category: prompts(category, recipe.sample.bench, recipe.sample.seed + 1, vocabulary, "test")
                for category in recipe.data.mix or CATEGORIES
            }

    def captions(self) -> list[str]:
        """All that it will ever draw."""
        return [*self.recipe.sample.prompts, *(caption for pairs in self.bench.values() for caption, _ in pairs)]

    def drawn(self, step: int) -> bool:
        """Whether ``draw`` has come to its end at this step, in this run or before it was resumed."""
        target = self._target(step)
        return target is None or target.with_suffix(".txt" if self.bench else ".png").is_file()

    def draw(self, step: int) -> dict[str, float]:
        """Write samples/step-NNNNNNN.png; return each category's share of correct pictures."""
        from ..shapebench import score

        scores = {}
        prompts = list(self.recipe.sample.prompts)
        drawn = self._images(prompts) if prompts else None
        for category, pairs in self.bench.items():
            captions, scenes = zip(*pairs, strict=True)
            scores[category] = float(score(self._images(list(captions)), list(scenes))["correct"])  # type: ignore[arg-type]
        target = self._target(step)
        if target is None:
            return scores
        if drawn is not None:
            write_bytes(target, png(drawn, prompts))
        if scores:
            line = " ".join(f"{name} {value:.3f}" for name, value in scores.items())
            write_bytes(target.with_suffix(".txt"), f"{line}\n".encode())
        return scores

    def _target(self, step: int) -> Path | None:
        return None if self.output is None else self.output / "samples" / f"step-{step:07d}.png"

    def _condition(self, prompts: list[str]) -> Heard:
        device = next(self.pair.network.parameters()).device
        return self.pair.heard(to_device(self.text_inputs(prompts), device))

    def _images(self, prompts: list[str]) -> np.ndarray:
        settings = self.recipe.sample
        with eval_mode(self.pair):
            return self.pipeline.draw(
                prompts,
                seed=settings.seed,
                steps=settings.steps,
                guidance=settings.guidance,
                size=self.recipe.data.resolution,
            )
