"""T2I-CompBench's spatial score (arXiv 2307.06350, sec. 4.2) by a detector of our own choice.

The benchmark's own detector, UniDet, cannot be had as a package: the result carries the name of the one that was used,
and is not to be compared with the paper's row.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..phrases import Splitter, splitter
from ..run import Picture, batches
from .detector import Box, Detector
from .metric import Means, Measured

# The words that a prompt may use -> where the first stands as seen from the second; None = close by, in any direction.
RELATIONS: dict[str, tuple[int, int] | None] = {
    **dict.fromkeys(("next to", "on side of", "on the side of", "near", "beside"), None),
    **dict.fromkeys(("on the left of", "to the left of", "left of"), (-1, 0)),
    **dict.fromkeys(("on the right of", "to the right of", "right of"), (1, 0)),
    **dict.fromkeys(("on the top of", "above"), (0, -1)),
    **dict.fromkeys(("on the bottom of", "below"), (0, 1)),
}
NEAR = 150 / 512  # of the picture's side; T2I-CompBench writes 150 pixels, of pictures of 512
OVERLAP = 0.1
LEAST = 0.5  # a lower score counts as 0


def spatial(pictures: Sequence[Picture], means: Means) -> Measured:
    """A quarter for the surest box of either thing, times its confidence; a half for where they stand; 0 below 0.5."""
    detector, split = Detector.load(means.weights, means.device), splitter(means.weights)
    values = {}
    for batch, images in batches(pictures, means.batch_size, "spatial"):
        ends = [_ends(split, picture.prompt) for picture in batch]
        for picture, image, boxes in zip(batch, images, detector.find(images, ends), strict=True):
            values[picture.id] = score(boxes[0], boxes[1], relation_of(picture.prompt), max(image.shape[:2]))
    settings = {"model": detector.name, "nouns": split.name, "resized_by": detector.resized_by}
    return Measured(values=values, settings=settings, suffix=f"detector {detector.name}")


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


def _ends(split: Splitter, prompt: str) -> tuple[str, str]:
    nouns = split.nouns(prompt)
    if not nouns:
        raise ValueError(f"no noun in the prompt {prompt!r} by {split.name}; reword it")
    return nouns[0], nouns[-1]
