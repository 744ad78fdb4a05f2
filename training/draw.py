"""``lavi-bridge sample``: pictures for prompts."""

from __future__ import annotations

import argparse

from . import models
from .files import write_bytes
from .grid import png
from .pipeline import Pipeline


def draw(args: argparse.Namespace) -> str:
    """Write one captioned grid of all prompts and return its path."""
    from tqdm import tqdm

    language, vision, vae = models.language(args.language_model), models.vision(args.vision_model), models.vae(args.vae)
    pipeline = Pipeline.load(args.bridge, language, vision, vae, device=args.device)
    with tqdm(total=args.steps, desc="sampling", disable=None) as bar:
        images = pipeline.draw(
            args.prompts,
            negative=args.negative,
            seed=args.seed,
            steps=args.steps,
            guidance=args.guidance,
            size=args.size,
            progress=bar.update,
        )
    write_bytes(args.output, png(images, args.prompts))
    return args.output
