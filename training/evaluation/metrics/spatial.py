"""T2I-CompBench's spatial score (arXiv 2307.06350, sec. 4.2) by a detector of our own choice.

The benchmark's own detector, UniDet, cannot be had as a package: the result carries the name of the one that was used,
and is not to be compared with the paper's row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..noun_phrases import Splitter, splitter
from ..run_folder import Picture, batches
from .detector import Box, Detector
from .metric import Measurement, MetricInputs

# The words that a prompt may use -> where the first stands as seen from the second; None = close by, in any direction.
RELATIONS: dict[str, tuple[int, int] | None] = {
    **dict.fromkeys(("next to", "on side of", "on the side of", "near", "beside"), None),
    **dict.fromkeys(("on the left of", "to the left of", "left of"), (-1, 0)),
    **dict.fromkeys(("on the right of", "to the right of", "right of"), (1, 0)),
    **dict.fromkeys(("on the top of", "above"), (0, -1)),
    **dict.fromkeys(("on the bottom of", "below"), (0, 1)),
}
NEAR = 150 / 512  # of the picture's side; T2I-CompBench writes 150 pixels, of pictures of 512
# Of complex prompts T2I-CompBench reads only these: the places that have a thing on either side, and the words that say
# how these should stand, in the order in which it looks for them.
PLACES = ("on top of", "on bottom of", "on the left", "on the right", "next to", "on side of", "near")
WORDS = ("on side of", "next to", "near", "on the left of", "on the right of", "on the bottom of", "on the top of")
OVERLAP = 0.1
LEAST = 0.5  # a lower score counts as 0
MOST_NAMED = 10  # of the nouns that the detector has no label for


class Scene(NamedTuple):
    """The nouns of two things, and how they should stand: of RELATIONS, or None."""

    first: str
    second: str
    relation: str | None


def spatial(pictures: Sequence[Picture], inputs: MetricInputs) -> Measurement:
    """A quarter for the surest box of either thing, times its confidence; a half for where they stand; 0 below 0.5."""
    return placement(pictures, inputs, ends)


def placement(
    pictures: Sequence[Picture], inputs: MetricInputs, scene_of: Callable[[Splitter, str], Scene | None]
) -> Measurement:
    """The spatial score of the scenes that ``scene_of`` reads in the prompts, 0 where it reads none."""
    detector, split = Detector.load(inputs.weights, inputs.device), splitter(inputs.weights)
    scenes = {prompt: scene_of(split, prompt) for prompt in {picture.prompt for picture in pictures}}
    values = {picture.id: 0.0 for picture in pictures}
    for batch, images in batches(pictures, inputs.batch_size, "spatial"):
        asked = [(p, image, s) for p, image in zip(batch, images, strict=True) if (s := scenes[p.prompt]) is not None]
        if not asked:
            continue
        boxes = detector.find([image for _, image, _ in asked], [(s.first, s.second) for _, _, s in asked])
        for (picture, image, scene), (first, second) in zip(asked, boxes, strict=True):
            values[picture.id] = score(first, second, scene.relation, max(image.shape[:2]))
    unknown = sorted({n.lower() for s in scenes.values() if s for n in (s.first, s.second) if not detector.knows(n)})
    settings = {
        "model": detector.name,
        "nouns": split.name,
        "nouns_unknown": f"{len(unknown)} ({', '.join(unknown[:MOST_NAMED])})" if unknown else "0",
        "prompts_without_scene": sum(scene is None for scene in scenes.values()),
        "resized_by": detector.resized_by,
    }
    return Measurement(values=values, settings=settings, suffix=f"detector {detector.name}")


def score(first: Box | None, second: Box | None, relation: str | None, side: int) -> float:
    """Of the boxes of the two things in a picture of ``side`` pixels; relation: of RELATIONS, or None."""
    total = 0.25 * sum(box.confidence for box in (first, second) if box is not None)
    if first is not None and second is not None and relation is not None:
        total += 0.5 * placed(first, second, relation, side)
    return total if total >= LEAST else 0.0


def placed(first: Box, second: Box, relation: str, side: int) -> float:
    """1 where first stands to second as said, less where they overlap or are far apart."""
    dx = (first.left + first.right - second.left - second.right) / 2
    dy = (first.top + first.bottom - second.top - second.bottom) / 2
    direction = RELATIONS[relation]
    if direction is None:
        near = NEAR * side
        return 1.0 if min(abs(dx), abs(dy)) < near else near / max(abs(dx), abs(dy))
    right, down = direction
    if dx * right + dy * down <= abs(dx * down + dy * right):
        return 0.0
    overlap = iou(first, second)
    return 1.0 if overlap < OVERLAP else OVERLAP / overlap


def iou(a: Box, b: Box) -> float:
    """Intersection over union."""
    width = max(0.0, min(a.right, b.right) - max(a.left, b.left))
    height = max(0.0, min(a.bottom, b.bottom) - max(a.top, b.top))
    areas = sum((box.right - box.left) * (box.bottom - box.top) for box in (a, b))
    return width * height / (areas - width * height)


def relation_of(prompt: str) -> str | None:
    """The longest of RELATIONS that the prompt holds."""
    text = f" {' '.join(prompt.lower().split())} "
    return next((words for words in sorted(RELATIONS, key=len, reverse=True) if f" {words} " in text), None)


def ends(split: Splitter, prompt: str) -> Scene:
    """The first and the last noun of a simple prompt."""
    nouns = split.nouns(prompt)
    if not nouns:
        raise ValueError(f"no noun in the prompt {prompt!r} by {split.name}; reword it")
    return Scene(nouns[0], nouns[-1], relation_of(prompt))


def around(split: Splitter, prompt: str) -> Scene | None:
    """The nouns around the place that a complex prompt names; None unless they are two."""
    nouns = split.around(prompt, PLACES)
    if len(nouns) != 2:
        return None
    return Scene(nouns[0], nouns[1], next((words for words in WORDS if words in prompt), None))
