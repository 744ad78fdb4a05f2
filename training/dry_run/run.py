"""``lavi-bridge train RECIPE --dry-run``: all that can be known of a run before a weight is loaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ..data import SOURCES
from ..models.device import pick_device
from ..recipe import Recipe
from . import data, disk, memory_check, models, settings
from .report import Report


def dry_run(recipe: Recipe, resume: bool = False, tell: Callable[[str], Any] = lambda _: None) -> Report:
    """Check a recipe against this machine; nothing is written but a file that is deleted at once. tell: is given each
    row of the report as soon as it is known."""
    report = Report(tell=tell)
    world, device = int(os.environ.get("WORLD_SIZE", "1")), pick_device()
    report.add("recipe", f"{recipe.name}: {recipe.steps:,} steps of {recipe.batch_size}, {recipe.precision}")
    for check in (settings.batch, settings.names, settings.precision, settings.packages):
        report.got(check, report, recipe, world)
    report.got(settings.output, recipe, resume)
    encoder = report.got(models.language, report, recipe)
    vision = report.got(models.vision, report, recipe)
    vae = report.got(models.vae, recipe)
    source = report.got(lambda: SOURCES[recipe.data.kind](recipe.data))
    count, tokens = None, recipe.prompt.max_length
    if source is not None:
        count = report.got(data.pictures, report, recipe, source)
        report.got(data.shapes, report, recipe, source)
        if encoder is not None:
            tokens = report.got(data.captions, report, recipe, source, encoder) or tokens
    latents = report.got(models.latents, report, recipe, vae, vision, device) if vae is not None else None
    ear = report.got(models.own_encoder, report, recipe)
    pair = None
    if encoder is not None and vision is not None and (ear is not None or not recipe.own_encoder.model):
        pair = report.got(models.pair, recipe, encoder, vision, ear)
    if pair is not None:
        teacher = report.got(models.teacher, recipe, pair)
        if source is not None:
            report.got(data.queries, report, pair, source)
        models.trained(report, pair)
        texts = data.heard(recipe, source, count)
        report.got(disk.check, report, recipe, pair, latents, count, texts, tokens)
        if latents is not None:
            report.got(memory_check.check, report, pair, vae, teacher, latents, tokens, device, world)
    return report
