"""Scenes: which objects stand where. Coordinates are pixels of a 128 x 128 canvas, x to the right and y downwards.

The categories follow T2I-CompBench (color, shape, texture, spatial, complex) plus single and count. Positions vary only
a little on purpose: where things stand is what a small diffusion model learns last, and no prompt asks for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from numpy.random import Generator

from .vocabulary import VOCABULARIES, Concept, Vocabulary

CANVAS = 128
CATEGORIES = ("single", "color", "shape", "texture", "count", "spatial", "complex")
SPLITS = ("train", "test", "pairs", "synonyms")

SINGLE_JITTER = 16.0  # a lone object about the centre
PAIR_OFFSET = 33.0  # either object of two, from the centre along their axis
PAIR_JITTER_ALONG, PAIR_JITTER_ACROSS = 4.0, 6.0  # 24 px radii still leave a gap of 10 px and a margin of 3 px
RADIUS = (20.0, 24.0)
COUNT_RADIUS = (15.0, 18.0)
ROW_RADIUS = (14.0, 15.5)  # three abreast have less room
COUNT_JITTER, ROW_JITTER = 4.0, 2.0
TWO_TEXTURES_SHARE = 0.4  # of the texture scenes, how many have two objects

# Where the first stands as seen from the second.
DIRECTIONS = {"left of": (-1.0, 0.0), "right of": (1.0, 0.0), "above": (0.0, -1.0), "below": (0.0, 1.0)}
_T = TypeVar("_T")


@dataclass(frozen=True)
class Object:
    """One shape: names from the vocabulary, centre and radius in canvas pixels."""

    color: str
    shape: str
    texture: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class PromptSpec:
    """What a prompt names, and so what the judge holds a picture to.

    `objects` are (color, shape, texture or None where the prompt is silent). `relation` is that of objects[0] to
    objects[1], or None.
    """

    objects: tuple[tuple[str, str, str | None], ...]
    relation: str | None = None

    def __post_init__(self) -> None:
        known = VOCABULARIES["full"]
        for color, shape, texture in self.objects:
            _require("colour", color, known.colors)
            _require("shape", shape, known.shapes)
            if texture is not None:
                _require("texture", texture, known.textures)
        if self.relation is not None:
            _require("relation", self.relation, known.relations)
        if not self.objects or (self.relation and len(self.objects) < 2):
            raise ValueError(
                f"{len(self.objects)} objects with relation {self.relation!r}; name 1 object, 2 for a relation"
            )


@dataclass(frozen=True)
class Scene:
    """A picture to draw. `objects` are in the order of the caption; `relation` is that of objects[0] to objects[1]."""

    category: str
    objects: tuple[Object, ...]
    relation: str | None = None

    @property
    def names_texture(self) -> bool:
        """Whether the caption says solid, striped or dotted."""
        return self.category in ("texture", "complex")

    @property
    def spec(self) -> PromptSpec:
        named = self.names_texture
        objects = tuple((thing.color, thing.shape, thing.texture if named else None) for thing in self.objects)
        return PromptSpec(objects, self.relation)


def sample_scene(rng: Generator, category: str, vocabulary: Vocabulary, split: str = "train") -> Scene:
    """One scene of `category`.

    `split`: "train", "test" and "synonyms" draw from the same compositions and never show a held-out (color, shape);
    "pairs" shows at least one. The same state of `rng` gives the same scene.
    """
    if category not in CATEGORIES:
        raise ValueError(f"no category {category!r}; the categories are {', '.join(CATEGORIES)}")
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; the splits are {', '.join(SPLITS)}")
    if category == "count":
        (color, shape) = _first_pair(rng, vocabulary, split)
        number = 1 + int(rng.integers(len(vocabulary.counts)))
        return Scene(category, tuple(Object(color, shape, "solid", *spot) for spot in _scatter(rng, number)))

    two = category in ("color", "shape", "spatial", "complex")
    two = two or (category == "texture" and rng.random() < TWO_TEXTURES_SHARE)
    kinds = _two_pairs(rng, category, vocabulary, split) if two else [_first_pair(rng, vocabulary, split)]
    direction = _pick(rng, vocabulary.relations).name
    spots = _beside(rng, direction) if two else _scatter(rng, 1)
    textures = _textures(rng, category, vocabulary, len(kinds))
    objects = tuple(Object(*kind, texture, *spot) for kind, texture, spot in zip(kinds, textures, spots, strict=True))
    return Scene(category, objects, direction if category in ("spatial", "complex") else None)


def _require(kind: str, name: str, concepts: tuple[Concept, ...]) -> None:
    names = [concept.name for concept in concepts]
    if name not in names:
        raise ValueError(f"no {kind} {name!r}; the judge knows {', '.join(names)}")


def _first_pair(rng: Generator, vocabulary: Vocabulary, split: str) -> tuple[str, str]:
    held = vocabulary.held_out_pairs
    return _pick(rng, [pair for pair in vocabulary.pairs if (pair in held) == (split == "pairs")])


def _two_pairs(rng: Generator, category: str, vocabulary: Vocabulary, split: str) -> list[tuple[str, str]]:
    """Two (color, shape) of different shapes; of one colour in the category "shape", else of different colours."""
    first = _first_pair(rng, vocabulary, split)
    same_color = category == "shape"
    second = _pick(
        rng,
        [
            pair
            for pair in vocabulary.pairs
            if pair[1] != first[1]
            and (pair[0] == first[0]) == same_color
            and (split == "pairs" or pair not in vocabulary.held_out_pairs)
        ],
    )
    # The held-out one must not always be named first.
    return [first, second] if rng.random() < 0.5 else [second, first]


def _textures(rng: Generator, category: str, vocabulary: Vocabulary, number: int) -> list[str]:
    if category not in ("texture", "complex"):
        return ["solid"] * number
    textures = [_pick(rng, vocabulary.textures).name]
    while len(textures) < number:
        # "texture" asks which of two objects has which, so there the two differ; "complex" leaves it to chance.
        others = [t.name for t in vocabulary.textures if category == "complex" or t.name not in textures]
        textures.append(_pick(rng, others))
    return textures


def _beside(rng: Generator, direction: str) -> list[tuple[float, float, float]]:
    """Two (x, y, radius): the first `direction` the second, on one axis through the centre."""
    dx, dy = DIRECTIONS[direction]
    spots = []
    for side in (1.0, -1.0):
        along = side * PAIR_OFFSET + rng.uniform(-PAIR_JITTER_ALONG, PAIR_JITTER_ALONG)
        across = rng.uniform(-PAIR_JITTER_ACROSS, PAIR_JITTER_ACROSS)
        x, y = CANVAS / 2 + along * dx + across * dy, CANVAS / 2 + along * dy + across * dx
        spots.append((x, y, rng.uniform(*RADIUS)))
    return spots


def _scatter(rng: Generator, number: int) -> list[tuple[float, float, float]]:
    """`number` (x, y, radius): one near the centre, two facing, three in a row or a triangle, four in a square."""
    middle = CANVAS / 2
    if number == 1:
        x, y = rng.uniform(middle - SINGLE_JITTER, middle + SINGLE_JITTER, 2)
        return [(float(x), float(y), rng.uniform(*RADIUS))]
    if number == 3 and rng.random() < 0.5:
        radius, jitter = rng.uniform(*ROW_RADIUS), ROW_JITTER
        places = [(-42.0, 0.0), (0.0, 0.0), (42.0, 0.0)]
        if rng.random() < 0.5:
            places = [(y, x) for x, y in places]
    else:
        radius, jitter = rng.uniform(*COUNT_RADIUS), COUNT_JITTER
        # Two: on an axis or a diagonal; three: a triangle on its base or its tip; four: the corners of a square.
        turn = {2: int(rng.integers(4)) * math.pi / 4, 3: _pick(rng, (-1, 1)) * math.pi / 2, 4: math.pi / 4}[number]
        reach = {2: 30.0, 3: 35.0, 4: 42.0}[number]
        angles = [turn + 2 * math.pi * i / number for i in range(number)]
        places = [(reach * math.cos(angle), reach * math.sin(angle)) for angle in angles]
    shifts = rng.uniform(-jitter, jitter, (number, 2)).tolist()
    return [(middle + x + dx, middle + y + dy, radius) for (x, y), (dx, dy) in zip(places, shifts, strict=True)]


def _pick(rng: Generator, options: Sequence[_T]) -> _T:
    # rng.choice would turn the options into an array, ten times slower.
    return options[int(rng.integers(len(options)))]
