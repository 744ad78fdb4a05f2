"""Validation loss on held-out examples, by noise level, always with the same noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..data import LatentCache
from ..data.text_inputs import TextInput, to_device
from ..models.vision_model import VisionModel
from ..recipe import Recipe


class Validation:
    """Every process computes the whole of it, so that the number is the same on any count of them."""

    def __init__(
        self,
        recipe: Recipe,
        vision: VisionModel,
        latents: LatentCache,
        indices: Sequence[int],
        text_inputs: Callable[[Sequence[str]], TextInput],
    ):
        if not indices:
            raise ValueError(
                f"validation.every is {recipe.validation.every}, but no example is held out: set data.validation to "
                "their number, or validation.every = 0"
            )
        self.recipe, self.vision, self.latents = recipe, vision, latents
        self.indices, self.text_inputs = list(indices), text_inputs

    def captions(self) -> list[str]:
        """All that it will ever ask the language model for."""
        return [self.latents.caption(index, 0) for index in self.indices]

    @torch.no_grad()
    def run(self, predict: Callable[..., Tensor], device: torch.device) -> dict:
        """predict: the pair's forward, in eval mode. -> {"loss": mean, "bins": [mean of each part of the noise levels]}

        The loss is the plain mean squared error, whatever weighting the recipe trains with.
        """
        from tqdm import tqdm

        settings, objective = self.recipe.validation, self.vision.objective
        totals = torch.zeros(settings.bins, dtype=torch.float64)
        count = settings.batch_size
        alike = (bucket.tolist() for bucket in self.latents.buckets(torch.tensor(self.indices)))
        batches = [bucket[i : i + count] for bucket in alike for i in range(0, len(bucket), count)]
        for indices in tqdm(batches, desc="validation", leave=False, disable=None):
            latents, captions = self.latents.batch(indices, [0] * len(indices))
            x0 = latents.to(device) * self.vision.scale
            text = to_device(self.text_inputs(captions), device)
            for part in range(settings.bins):
                noise = torch.stack([self._noise(index, part, latents.shape[1:]) for index in indices]).to(device)
                level = torch.full((len(indices),), (part + 0.5) / settings.bins, device=device)
                timesteps = objective.timesteps(level)
                x, target = objective.corrupt(x0, noise, timesteps)
                with torch.autocast(device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
                    prediction = predict(text, x, timesteps)
                totals[part] += objective.loss(prediction, target).double().sum().cpu()
        means = totals / len(self.indices)
        return {"loss": float(means.mean()), "bins": [round(value, 6) for value in means.tolist()]}

    def _noise(self, index: int, part: int, shape: torch.Size) -> Tensor:
        seed = (self.recipe.seed * 1_000_003 + index) * 4096 + part
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
