"""T2I-CompBench's 3-in-1 score of complex prompts (arXiv 2307.06350, sec. 4.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..phrases import splitter
from ..run import Picture
from .blip_vqa import blip_vqa
from .clip import Clip, cosines
from .metric import Means, Measured
from .spatial import spatial

# Which list of T2I-CompBench a prompt is of -> which parts are averaged.
PARTS: Mapping[str, tuple[str, ...]] = {
    "spatial": ("spatial", "blip-vqa"),
    "action": ("clip", "blip-vqa"),
    "": ("spatial", "clip", "blip-vqa"),
}


def three_in_one(pictures: Sequence[Picture], means: Means) -> Measured:
    """The mean of BLIP-VQA, the spatial score and the CLIP score without adjectives; of two of them where the prompt
    is of T2I-CompBench's spatial or action list alone (meta "complex")."""
    split = splitter(means.weights)
    clip = Clip.load(means.weights, "clip-b32", means.device)
    asked, stood = blip_vqa(pictures, means), spatial(pictures, means)
    texts = [split.without_adjectives(picture.prompt) for picture in pictures]
    parts = {
        "blip-vqa": asked.values,
        "spatial": stood.values,
        "clip": cosines(clip, pictures, texts, means.batch_size),
    }
    details = {p.id: {name: values[p.id] for name, values in parts.items()} for p in pictures}
    values = {p.id: combine(details[p.id], str(p.meta.get("complex", ""))) for p in pictures}
    settings = {"blip-vqa": dict(asked.settings), "spatial": dict(stood.settings), "clip": clip.name}
    suffix = ", ".join(part for part in (stood.suffix, asked.suffix) if part)
    return Measured(values=values, settings=settings, suffix=suffix, details=details)


def combine(parts: Mapping[str, float], kind: str) -> float:
    """parts: of one picture, by name. kind: spatial, action or anything else."""
    chosen = PARTS.get(kind, PARTS[""])
    return sum(parts[name] for name in chosen) / len(chosen)
