"""``lavi-bridge demo``: what the bundled bridges draw, and how the judge scores it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Literal

import numpy as np

from ...lavi_core.files import write_bytes
from ..evaluation.shapebench import ROWS, Settings, bounds, evaluate, table
from ..models import named
from ..models.picture_grid import png
from ..models.pipeline import Pipeline

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


def show(args: argparse.Namespace) -> str:
    """Write the picture grid; return the table of scores, or the scores as JSON."""
    from tqdm import tqdm

    unknown = [name for name in args.bridges if name not in BRIDGES]
    if unknown:
        raise ValueError(f"unknown demo bridge {unknown[0]!r}; known: {', '.join(BRIDGES)}")
    if args.prompts < 1:
        raise ValueError(f"--prompts must be at least 1, got {args.prompts}")
    names = list(dict.fromkeys(["own", *args.bridges]))
    languages = {name: named.language("demo:own" if name == "control" else f"demo:{name}") for name in names}
    settings = Settings(prompts=args.prompts)
    results, pictures, captions = {}, [], []
    with tqdm(total=len(names) * len(ROWS) * args.prompts, desc="demo", unit="picture", disable=None) as bar:
        for name in names:
            pipeline = load(name, languages[name], args.precision)
            results[BRIDGES[name]] = evaluate(pipeline, settings, progress=bar.update)
            if name in args.bridges:
                pictures.append(pipeline.draw(PROMPTS, seed=args.seed))
                captions += [f"{BRIDGES[name]}: {prompt}" for prompt in PROMPTS]
    write_bytes(args.output, png(np.concatenate(pictures), captions, columns=6))
    limits = bounds(settings)
    if args.json:
        return json.dumps({"scores": results, "ceiling_and_chance": limits, "picture": str(args.output)}, indent=1)
    return f"{table(results, limits)}\n\n{args.prompts} prompts a row, 95 % intervals; pictures in {Path(args.output)}"


def load(name: str, language: Path, precision: Literal["bf16", "fp32"] = "fp32") -> Pipeline:
    """The pipeline of one bundled bridge."""
    return Pipeline.load(
        named.bridge(f"demo:{name}"), language, named.vision("demo:vision"), named.vae("demo:vae"), precision
    )
