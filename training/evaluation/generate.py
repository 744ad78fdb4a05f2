"""``lavi-bridge evaluate generate``: the pictures that are scored, and the manifest that says how they were made."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ...lavi_core import fingerprint
from ...lavi_core.files import write_bytes, write_text
from ..models import named, progress
from ..models.diffusers_folder import read_config
from ..models.find_language import language_for
from ..models.pipeline import Pipeline
from ..models.sampling import noise_for
from ..models.vae import decode
from .prompts import Prompt, read_prompts
from .run_folder import MANIFEST, file_of, is_whole, read_manifest, sha256_of
from .samplers import SAMPLERS

log = logging.getLogger(__name__)

# What the authors' test scripts put behind every prompt; whether their tables have it is not known.
QUALITY_SUFFIX = ", best quality, extremely detailed, 4k resolution"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a picture depends on besides its prompt, its noise and the bridge. language, vision, vae: which models."""

    sampler: str = "unipc"
    steps: int = 50
    guidance: float = 7.5
    size: int = 512
    suffix: str = ""
    negative: str = ""
    precision: Literal["fp32", "bf16"] = "fp32"
    language: str = ""
    vision: str = ""
    vae: str = ""


def generate(args: argparse.Namespace) -> str:
    """Draw what RUN lacks of its pictures; return what was done. Raises ValueError where RUN was begun otherwise."""
    if min(args.steps, args.batch_size) < 1:
        raise ValueError(f"--steps {args.steps} and --batch-size {args.batch_size} must be at least 1")
    SAMPLERS[args.sampler]
    run, prompts = Path(args.output), read_prompts(args.prompts, args.category)
    vision = named.vision(args.vision_model)
    size = size_for(vision, args.size)
    bridge, vae = named.bridge(str(args.bridge)), named.vae_for(args.vision_model, args.vae)
    language = language_for(bridge, args.language_model, args.language_models)
    own = named.teacher(args.own_encoder) if args.own_encoder else None
    pipeline = Pipeline.load(bridge, language, vision, vae, args.precision, args.device, own)
    settings = Settings(
        sampler=args.sampler,
        steps=args.steps,
        guidance=args.guidance,
        size=size,
        suffix=QUALITY_SUFFIX if args.quality_suffix else "",
        negative=args.negative,
        precision=args.precision,
        language=language.name,
        vision=f"{pipeline.vision.model_id} {fingerprint.weights_fingerprint(pipeline.vision.network)[:16]}",
        vae=f"{vae.stem} {fingerprint.weights_fingerprint(pipeline.vae)[:16]}",
    )
    cut = pipeline.tokens_cut([prompt.text + settings.suffix for prompt in prompts])
    if lost := [prompt.text for prompt, tokens in zip(prompts, cut, strict=True) if tokens]:
        log.warning("%d of %d prompts are longer than the bridge hears, and cut: %r", len(lost), len(cut), lost[0])
    rows = begin(run, manifest_of(prompts, seeds_of(args.seeds), settings, sha256_of(bridge), cut))
    missing = [row for row in rows if not is_whole(file_of(run, row["id"]), size)]
    with progress.bar(total=len(rows), initial=len(rows) - len(missing), desc="drawing", unit="picture") as bar:
        for i in range(0, len(missing), args.batch_size):
            batch = missing[i : i + args.batch_size]
            images = draw(pipeline, [row["prompt"] for row in batch], [row["noise"] for row in batch], settings)
            for row, image in zip(batch, images, strict=True):
                write_bytes(file_of(run, row["id"]), png(image))
            bar.update(len(batch))
    return f"{run}: {len(missing)} pictures drawn, {len(rows) - len(missing)} were there"


def draw(pipeline: Pipeline, texts: Sequence[str], noises: Sequence[int], settings: Settings) -> np.ndarray:
    """One picture a text, uint8 [B size size 3]; noises: the seed of each picture's own noise."""
    side = settings.size // pipeline.vision.row.pixels
    device = next(pipeline.vision.network.parameters()).device
    shape = (1, pipeline.vision.latent_channels, side, side)
    noise = torch.cat([noise_for(seed, shape) for seed in noises]).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=pipeline.precision == "bf16"):
        positive = pipeline.condition([text + settings.suffix for text in texts])
        negative = pipeline.condition([settings.negative])
        latents = SAMPLERS[settings.sampler](
            pipeline.vision, positive, negative, noise, settings.steps, settings.guidance
        )
        return decode(pipeline.vae, latents.float()).cpu().numpy()


def manifest_of(
    prompts: Sequence[Prompt], seeds: Sequence[int], settings: Settings, bridge: str, cut: Sequence[int] = ()
) -> list[dict]:
    """One row a picture, all prompts of a seed before the next seed. noise: what ComfyUI's KSampler takes as its seed
    for this picture; of one prompt and seed it is the same whatever bridge is evaluated. cut: tokens of each prompt
    that the bridge does not hear; () = none."""
    return [
        {
            "id": len(prompts) * k + i,
            "prompt": prompt.text,
            "category": prompt.category,
            "seed": seed,
            "noise": noise_of(seed, i),
            "meta": dict(prompt.meta),
            "cut": cut[i] if cut else 0,
            "settings": asdict(settings),
            "bridge": bridge,
        }
        for k, seed in enumerate(seeds)
        for i, prompt in enumerate(prompts)
    ]


def noise_of(seed: int, index: int) -> int:
    """Of the prompt at ``index``: pictures that share their noise look alike, which a FID would count."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{index}".encode()).digest()[:6], "big")


def begin(run: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Write the manifest; one that is there must be the same, or its beginning (seeds were added)."""
    if (run / MANIFEST).is_file():
        known = read_manifest(run)
        if len(known) > len(rows):
            raise ValueError(
                f"{run} was begun with {len(known)} pictures, now there are {len(rows)}: take back what was left out "
                "(prompts or seeds), or give another folder"
            )
        for old, new in zip(known, rows, strict=False):
            _same(run, old, json.loads(json.dumps(new)))
    elif any((run / "samples").glob("*.png")):
        raise ValueError(f"{run} holds pictures without a {MANIFEST} that says what they are: give another folder")
    write_text(run / MANIFEST, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return rows


def _same(run: Path, old: dict[str, Any], new: dict[str, Any], where: str = "") -> None:
    for key in {**old, **new}:
        a, b = old.get(key), new.get(key)
        if a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            _same(run, a, b, f"{key}.")
        raise ValueError(
            f"{run} was begun with {where}{key} {a!r}, now it is {b!r}: take that back, or give another folder"
        )


def seeds_of(texts: Iterable[str]) -> list[int]:
    """Numbers, and spans as in 42..51, both ends included. Raises ValueError for anything else and for one twice."""
    seeds: list[int] = []
    for text in texts:
        first, span, last = str(text).partition("..")
        try:
            seeds += range(int(first), int(last) + 1) if span else [int(first)]
        except ValueError:
            raise ValueError(f"--seeds {text!r} is neither a number nor a span as in 42..51") from None
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds {' '.join(map(str, texts))} gives {len(seeds)} seeds, {len(set(seeds))} different")
    return seeds


def size_for(vision: Path, asked: int | None) -> int:
    """The side of the pictures: asked for, or what the vision model was made for, by its sample_size."""
    config, row = read_config(vision)
    size = asked or row.picture_size(config)
    row.check_side(size, "--size")
    return size


def png(image: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()
