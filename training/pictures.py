"""Sample pictures and ShapeBench scores during training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from .files import write_bytes
from .grid import png
from .pair import Pair, eval_mode
from .recipe import Recipe
from .sampling import noise_for, sample
from .vision_model import decode

BATCH = 32


class Pictures:
    """The recipe's prompts as one grid, and its bench prompts as scores, always on the same noise."""

    def __init__(self, recipe: Recipe, pair: Pair, vae, output: Path):
        from .shapebench import CATEGORIES, VOCABULARIES, prompts

        self.recipe, self.pair, self.vae, self.output = recipe, pair, vae, output
        self.bench = {}
        if recipe.sample.bench:
            vocabulary = VOCABULARIES[recipe.data.vocabulary]
            self.bench = {
                category: prompts(category, recipe.sample.bench, recipe.sample.seed + 1, vocabulary, "test")
                for category in recipe.data.mix or CATEGORIES
            }

    def draw(self, step: int) -> dict[str, float]:
        """Write samples/step-NNNNNNN.png; return each category's share of correct pictures."""
        from .shapebench import score

        scores = {}
        if self.recipe.sample.prompts:
            prompts = list(self.recipe.sample.prompts)
            write_bytes(self.output / "samples" / f"step-{step:07d}.png", png(self.images(prompts), prompts))
        for category, pairs in self.bench.items():
            captions, scenes = zip(*pairs, strict=True)
            scores[category] = score(self.images(list(captions)), list(scenes))["correct"]
        if scores:
            line = " ".join(f"{name} {value:.3f}" for name, value in scores.items())
            write_bytes(self.output / "samples" / f"step-{step:07d}.txt", f"{line}\n".encode())
        return scores

    def images(self, prompts: list[str]) -> np.ndarray:
        """uint8 [B H W 3]"""
        device = next(self.pair.adapter.parameters(), torch.zeros(())).device
        settings = self.recipe.sample
        vision = self.pair.vision_model
        shape = (vision.latent_channels, *self.latent_size())
        noise = noise_for(settings.seed, (len(prompts), *shape)).to(device)
        images = []
        with eval_mode(self.pair), torch.autocast(device.type, torch.bfloat16, self.recipe.precision == "bf16"):
            encode = lambda texts: self.pair.condition(  # noqa: E731
                self.pair.encoder.tokenize(texts, self.recipe.prompt).to(device)
            )
            negative = encode([""])
            for i in range(0, len(prompts), BATCH):
                positive = encode(prompts[i : i + BATCH])
                latents = sample(vision, positive, negative, noise[i : i + BATCH], settings.steps, settings.guidance)
                images.append(decode(self.vae, latents.float()).cpu().numpy())
        return np.concatenate(images)

    def latent_size(self) -> tuple[int, int]:
        side = self.recipe.data.resolution // 8
        return side, side
