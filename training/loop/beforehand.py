"""What of a recipe is refused before models are read: a head start or a cache of latents may take hours."""

from __future__ import annotations

from importlib.util import find_spec

from ..data.batch import micro_batch_size
from ..recipe import Recipe
from . import parallel
from .loss_weighting import WEIGHTINGS
from .optimizers import OPTIMIZERS
from .validation import none_held_out


def check(recipe: Recipe, processes: int) -> None:
    """Raise ValueError for what no step could be trained with, by this many processes and the launcher's settings."""
    micro_batch_size(recipe, processes)
    for table, name in ((OPTIMIZERS, recipe.optimizer.kind), (WEIGHTINGS, recipe.loss.weighting)):
        table[name]
    if recipe.validation.every and not recipe.data.validation:
        raise none_held_out(recipe)
    for name in recipe.trackers:
        if find_spec(name) is None:
            raise ValueError(
                f"trackers names {name}, whose package is not installed: pip install {name}, or take it out"
            )
    parallel.check(recipe, processes)
