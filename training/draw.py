"""``lavi-bridge sample``: pictures for prompts."""

from __future__ import annotations

import argparse
import logging

from . import models
from .files import write_bytes
from .grid import png
from .pipeline import Pipeline
from .vision_model import VAE_FACTOR, read_config

log = logging.getLogger(__name__)


def draw(args: argparse.Namespace) -> str:
    """Write one captioned grid of all prompts and return its path."""
    from tqdm import tqdm

    demo = args.vision_model == "demo:vision"
    language, vision = models.language(args.language_model), models.vision(args.vision_model)
    vae = models.vae_for(args.vision_model, args.vae)
    size = args.size or read_config(vision)[0]["sample_size"] * VAE_FACTOR
    pipeline = Pipeline.load(models.bridge(args.bridge), language, vision, vae, device=args.device)
    for prompt, cut in zip(args.prompts, pipeline.tokens_cut(args.prompts), strict=True):
        if cut:
            log.warning("the last %d tokens of %r are not heard: the bridge hears fewer", cut, prompt)
    with tqdm(total=args.steps, desc="sampling", disable=None) as bar:
        images = pipeline.draw(
            args.prompts,
            negative=args.negative,
            seed=args.seed,
            steps=args.steps,
            guidance=(3.0 if demo else 7.5) if args.guidance is None else args.guidance,
            size=size,
            progress=bar.update,
        )
    write_bytes(args.output, png(images, args.prompts))
    return args.output
