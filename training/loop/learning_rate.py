"""The learning rate over the steps: warm-up, then constant, linear or cosine; times each group's own in the recipe."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

from ..recipe import Recipe
from .optimizers import OWN_SCHEDULE

log = logging.getLogger(__name__)


def learning_rate_scale(recipe: Recipe, step: int, steps: int | None = None) -> float:
    """Linear warm-up from 1/warmup, then constant, a half cosine or a line to zero at the last step. steps: of the
    whole run; None = the recipe's."""
    settings = recipe.optimizer
    if settings.kind in OWN_SCHEDULE:
        return 1.0
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, (recipe.steps if steps is None else steps) - settings.warmup)
    return {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[settings.schedule]


def tell_of_the_rate(path: Path, recipe: Recipe, step: int) -> None:
    """Log a rate that jumps where a run goes on with more or fewer steps. path: the recipe.json of the run so far."""
    before = json.loads(path.read_text(encoding="utf-8")).get("steps") if path.is_file() else None
    if not step or not isinstance(before, int) or before == recipe.steps:
        return
    was, now = learning_rate_scale(recipe, min(step, before), before), learning_rate_scale(recipe, step)
    if abs(now - was) > 0.02:
        log.warning(
            "with %d steps for %d the %s schedule goes on at %.2f of the learning rate, where it had come to %.2f",
            *(recipe.steps, before, recipe.optimizer.schedule, now, was),
        )
