"""``lavi-bridge demo``: what the bundled bridges draw, and how the judge scores it."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from ...lavi_core.files import write_bytes
from ..evaluation.shapebench import ROWS, Settings, bounds, evaluate, table
from ..models import named, progress
from ..models.device import fastest_precision, pick_device
from ..models.picture_grid import png
from ..models.pipeline import Pipeline

log = logging.getLogger(__name__)
BRIDGES = {"own": "own encoder", "control": "own encoder, trained on", "minilm": "MiniLM", "smollm2": "SmolLM2"}
PROMPTS = (
    "a red circle",
    "a green square",
    "a striped blue square",
    "a dotted yellow circle",
    "a crimson disc",
    "an emerald box",
    "a red circle and a blue square",
    "a yellow triangle and a green cross",
    "a red circle left of a blue square",
    "a green cross above a red triangle",
    "three blue squares",
    "a ruby pyramid under an azure disk",
)


MEASURED = 50  # prompts a row, from which intervals say something
COLUMNS = 6  # pictures in a row of the grid, which is written after each row


def show(args: argparse.Namespace) -> str:
    """Draw the picture grid, then judge; return the table of scores, or the scores as JSON.

    The grid is written anew with each row of pictures, so that there is something to look at while the rest is drawn.
    """
    unknown = [name for name in args.bridges if name not in BRIDGES]
    if unknown:
        raise ValueError(f"unknown demo bridge {unknown[0]!r}; known: {', '.join(BRIDGES)}")
    if args.prompts < 1:
        raise ValueError(f"--prompts must be at least 1, got {args.prompts}")
    device = pick_device(args.device)
    precision = fastest_precision(device) if args.precision == "auto" else args.precision
    drawn = list(dict.fromkeys(args.bridges))
    names = list(dict.fromkeys(["own", *drawn]))
    languages = {name: named.language("demo:own" if name == "control" else f"demo:{name}") for name in names}
    settings = Settings(prompts=args.prompts)
    results, pictures, captions = {}, [], []
    total = len(drawn) * len(PROMPTS) + len(names) * len(ROWS) * args.prompts
    with progress.bar(total=total, desc="demo", unit="picture") as bar:
        pipelines = {}
        for name in drawn:
            pipelines[name] = load(name, languages[name], precision, device)
            for images in pipelines[name].batches(PROMPTS, seed=args.seed, batch_size=COLUMNS):
                pictures.append(images)
                row = PROMPTS[len(captions) % len(PROMPTS) :][: len(images)]
                captions += [f"{BRIDGES[name]}: {prompt}" for prompt in row]
                write_bytes(args.output, png(np.concatenate(pictures), captions, columns=COLUMNS))
                bar.update(len(images))
                if len(pictures) == 1:
                    log.info("the first pictures are in %s; the others follow", Path(args.output))
        for name in names:
            pipeline = pipelines.pop(name, None) or load(name, languages[name], precision, device)
            results[BRIDGES[name]] = evaluate(pipeline, settings, progress=bar.update)
    limits = bounds(settings)
    if args.json:
        return json.dumps({"scores": results, "ceiling_and_chance": limits, "picture": str(args.output)}, indent=1)
    glance = (
        ""
        if args.prompts >= MEASURED
        else " (a glance, whose intervals say nothing where all agree; --prompts 200 measures)"
    )
    said = f"{args.prompts} prompts a row{glance}, 95 % intervals; pictures in {Path(args.output)}"
    return f"{table(results, limits)}\n\n{said}"


def load(
    name: str,
    language: Path,
    precision: Literal["bf16", "fp32"] = "fp32",
    device: str | torch.device | None = None,
) -> Pipeline:
    """The pipeline of one bundled bridge."""
    return Pipeline.load(
        named.bridge(f"demo:{name}"), language, named.vision("demo:vision"), named.vae("demo:vae"), precision, device
    )
