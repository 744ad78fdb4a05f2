"""The settings of a recipe against this machine: batch, tables' names, packages, output folder."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from ..data.batch import micro_batch_size
from ..loop import checkpoint, lock
from ..loop.loss_weighting import WEIGHTINGS
from ..loop.optimizers import OPTIMIZERS
from ..models.device import emulates_bf16, pick_device
from ..recipe import Recipe
from . import disk
from .report import Report

PACKAGES: tuple[tuple[str, Callable[[Recipe], bool]], ...] = (
    ("bitsandbytes", lambda recipe: recipe.optimizer.kind in ("adamw8bit", "paged_adamw8bit")),
    ("schedulefree", lambda recipe: recipe.optimizer.kind == "schedule_free"),
    ("tensorboard", lambda recipe: "tensorboard" in recipe.trackers),
    ("wandb", lambda recipe: "wandb" in recipe.trackers),
    ("webdataset", lambda recipe: recipe.data.kind == "webdataset"),
)


def batch(report: Report, recipe: Recipe, world: int) -> None:
    share = f"{micro_batch_size(recipe, world)} at a time, {recipe.accumulation} times"
    report.add("batch", f"{recipe.batch_size} = {share}, on {world} process{'es' if world > 1 else ''}")


def names(report: Report, recipe: Recipe, world: int) -> None:
    for table, name in ((OPTIMIZERS, recipe.optimizer.kind), (WEIGHTINGS, recipe.loss.weighting)):
        report.got(table.__getitem__, name)


def precision(report: Report, recipe: Recipe, world: int) -> None:
    if recipe.precision == "bf16" and emulates_bf16(pick_device()):
        report.notes.append(
            "this CPU has no instructions for bf16, in which a convolution takes tens of times as long: "
            "precision = 'fp32' is faster here"
        )


def packages(report: Report, recipe: Recipe, world: int) -> None:
    for name, needed in PACKAGES:
        if needed(recipe) and find_spec(name) is None:
            report.problems.append(f"this recipe needs the package {name}, which is not installed: pip install {name}")


def output(recipe: Recipe, resume: bool) -> None:
    output = Path(recipe.output)
    if output.exists() and not output.is_dir():
        raise ValueError(f"the output {output} is a file; set another output")
    there = bool(checkpoint.states(output / "state"))
    if there and not resume:
        raise ValueError(f"{output} holds a run already; go on with --resume, or set another output")
    if resume and not any((output / name).exists() for name in ("state", "recipe.json", "log.jsonl")):
        raise ValueError(f"there is nothing to resume in {output}; run without --resume")
    if (output / lock.NAME).is_file():
        with lock.held(output):
            pass
    folder = disk.existing(output)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"nothing can be written to {folder} ({error.strerror}); set another output") from None
