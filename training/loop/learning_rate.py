"""The learning rate over the steps: warm-up, then constant, linear or cosine; times each group's own in the recipe."""

from __future__ import annotations

import math

from ..recipe import Recipe
from .optimizers import OWN_SCHEDULE


def learning_rate_scale(recipe: Recipe, step: int) -> float:
    """Linear warm-up from 1/warmup, then constant, a half cosine or a line to zero at the last step."""
    settings = recipe.optimizer
    if settings.kind in OWN_SCHEDULE:
        return 1.0
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, recipe.steps - settings.warmup)
    return {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[settings.schedule]
