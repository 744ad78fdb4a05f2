"""T2I-CompBench's 3-in-1 score of complex prompts (arXiv 2307.06350, sec. 4.4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from ..noun_phrases import splitter
from ..run_folder import Picture
from .blip_vqa import blip_vqa
from .clip import Clip, cosines, settings_of
from .metric import Measurement, MetricInputs
from .spatial import around, placement

# Which list of T2I-CompBench a prompt is of -> which parts are averaged.
PARTS: Mapping[str, tuple[str, ...]] = {
    "spatial": ("spatial", "blip-vqa"),
    "action": ("clip", "blip-vqa"),
    "": ("spatial", "clip", "blip-vqa"),
}
LISTS = ("spatial", "action", "spatialaction")  # the files of T2I-CompBench beside the one of all complex prompts


def three_in_one(pictures: Sequence[Picture], inputs: MetricInputs) -> Measurement:
    """The mean of BLIP-VQA, the spatial score and the CLIP score without adjectives; of two of them where the prompt
    is of T2I-CompBench's spatial or action list alone (meta "complex")."""
    split = splitter(inputs.weights)
    clip = Clip.load(inputs.weights, "clip-b32", inputs.device)
    asked, stood = blip_vqa(pictures, inputs), placement(pictures, inputs, around)
    texts = [split.without_adjectives(picture.prompt) for picture in pictures]
    parts = {
        "blip-vqa": asked.values,
        "spatial": stood.values,
        "clip": cosines(clip, pictures, texts, inputs.batch_size),
    }
    details = {p.id: {name: values[p.id] for name, values in parts.items()} for p in pictures}
    values = {p.id: combine(details[p.id], list_of(p)) for p in pictures}
    settings = {
        "lists": lists(pictures),
        "blip-vqa": dict(asked.settings),
        "spatial": dict(stood.settings),
        "clip": settings_of(clip, texts),
    }
    suffix = ", ".join(part for part in (stood.suffix, asked.suffix) if part)
    return Measurement(values=values, settings=settings, suffix=suffix, details=details)


def list_of(picture: Picture) -> str:
    return str(picture.meta.get("complex", ""))


def lists(pictures: Sequence[Picture]) -> str:
    """How many prompts are of which list: complex_val.txt alone says it of none, and the mean is then of other parts
    than T2I-CompBench's."""
    kinds = Counter(kind for _, kind in {(p.prompt, list_of(p)) for p in pictures})
    named = [f"{kind} {kinds.pop(kind, 0)}" for kind in LISTS]
    return ", ".join([*named, f"none {kinds.total()}"])


def combine(parts: Mapping[str, float], kind: str) -> float:
    """parts: of one picture, by name. kind: spatial, action or anything else."""
    chosen = PARTS.get(kind, PARTS[""])
    return sum(parts[name] for name in chosen) / len(chosen)
