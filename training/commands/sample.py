"""``lavi-bridge sample``: pictures for prompts, without ComfyUI."""

from __future__ import annotations

import argparse
import logging
import math
from pathlib import Path

HELP = "draw pictures with a bridge, without ComfyUI"
log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bridge", help="a bridge .safetensors")
    parser.add_argument("prompts", nargs="+", help="a picture for each")
    parser.add_argument(
        "--language-model",
        help="folder, .gguf file, demo:minilm or demo:smollm2 (default: the bridge's, looked for)",
    )
    parser.add_argument("--language-models", metavar="FOLDER", help="where the bridge's own is looked for")
    parser.add_argument("--vision-model", default="demo:vision", help="folder with unet/ (transformer/) and scheduler/")
    parser.add_argument("--vae", help="VAE folder or TAESD file (default: vae/ or vqvae/ of the vision model's folder)")
    parser.add_argument("--strength", type=float, default=1.0, help="of the bridge: 1 as trained, 0 it hears nothing")
    parser.add_argument("--own-encoder", help="of a bridge with two ears, folder (default: the vision model's folder)")
    parser.add_argument("--own-strength", type=float, default=1.0, help="of that encoder")
    parser.add_argument("--own-prompt", help="what that encoder is told of every picture (default: the prompt)")
    parser.add_argument(
        "-o",
        "--output",
        default="sample.png",
        help="one sheet of all pictures with their prompts (default: %(default)s)",
    )
    parser.add_argument("--pictures", metavar="FOLDER", help="write each picture by itself too, as FOLDER/1.png, 2.png")
    parser.add_argument("--negative", default="", help="the negative prompt (default: the empty one)")
    parser.add_argument("--steps", type=int, default=20, help="of the sampler (default: %(default)s)")
    parser.add_argument("--guidance", type=float, help="default: 7.5, as in the paper; 3 for the demo's vision model")
    parser.add_argument(
        "--embedded-guidance",
        type=float,
        help="of a guidance-distilled model such as Flux.1 dev (default: its own, 3.5)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: %(default)s)")
    parser.add_argument("--size", type=int, help="side of the picture in pixels (default: the vision model's own)")
    parser.add_argument("--device", help="cuda, mps or cpu (default: the first of them that is here)")


def run(args: argparse.Namespace) -> str:
    """Write one captioned grid of all prompts, and the pictures alone where they are asked for; return its path."""

    from ...lavi_core.files import write_bytes
    from ...lavi_core.prompt import WEIGHT, shortened
    from ..evaluation.generate import png as alone
    from ..models import named, progress
    from ..models.diffusers_folder import read_config
    from ..models.find_language import language_for
    from ..models.picture_grid import png
    from ..models.pipeline import Pipeline, Strengths

    if args.steps < 1:
        raise ValueError(f"--steps must be at least 1, got {args.steps}")
    if args.guidance is not None and not math.isfinite(args.guidance):
        raise ValueError(f"--guidance must be a number such as 7.5, got {args.guidance}")
    demo = args.vision_model == "demo:vision"
    vision = named.vision(args.vision_model)
    language = language_for(named.bridge(args.bridge), args.language_model, args.language_models)
    vae = named.vae_for(args.vision_model, args.vae)
    config, row = read_config(vision)
    size = row.picture_size(config) if args.size is None else args.size
    row.check_side(size, "--size")
    if args.embedded_guidance is not None and not config.get("guidance_embeds"):
        raise ValueError(f"--embedded-guidance is given, but {vision} ({row.name}) embeds none: set --guidance alone")
    for option, strength in (("--strength", args.strength), ("--own-strength", args.own_strength)):
        if not math.isfinite(strength):
            raise ValueError(f"{option} must be a number such as 1, got {strength}")
    strengths = Strengths(bridge=args.strength, own=args.own_strength)
    own = named.teacher(args.own_encoder) if args.own_encoder else None
    pipeline = Pipeline.load(
        named.bridge(args.bridge), language, vision, vae, device=args.device, own=own, strengths=strengths
    )
    if args.own_prompt is not None and pipeline.own is None:
        raise ValueError(f"--own-prompt is given, but {args.bridge} was trained to be heard alone: leave it out")
    texts = [*args.prompts, *([args.negative] if args.negative else [])]
    for prompt, cut in zip(texts, pipeline.tokens_cut(texts), strict=True):
        if cut:
            log.warning("the last %d tokens of %r are not heard: the bridge hears fewer", cut, shortened(prompt))
        if weight := WEIGHT.search(prompt):
            log.warning("%s is read as it is written: weights are of the nodes", weight[0])
    with progress.bar(total=args.steps, desc="sampling") as bar:
        images = pipeline.draw(
            args.prompts,
            negative=args.negative,
            own_prompts=None if args.own_prompt is None else [args.own_prompt] * len(args.prompts),
            seed=args.seed,
            steps=args.steps,
            guidance=(3.0 if demo else 7.5) if args.guidance is None else args.guidance,
            size=size,
            embedded_guidance=args.embedded_guidance,
            progress=bar.update,
        )
    write_bytes(args.output, png(images, args.prompts))
    if args.pictures is not None:
        Path(args.pictures).mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(images, 1):
            write_bytes(Path(args.pictures) / f"{number}.png", alone(image))
    return args.output
