"""The closed vocabulary of ShapeBench: what can be drawn, and every word that may name it.

Each `Concept` has one plain name, one or two *training synonyms* and at least two *held-out synonyms*. Captions of the
training split use only the first two kinds, so a model that understands the third kind has its knowledge from the
language model behind it and not from the pictures. Held-out words were chosen before any model was trained and stay;
the training synonyms were widened later (`_MORE`), once first bridges had heard too few.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

from ...lavi_core.registry import Registry


@dataclass(frozen=True)
class Concept:
    """One thing a caption can name: `name` (also its id), words seen in training, words never seen there."""

    name: str
    synonyms: tuple[str, ...]
    held_out: tuple[str, ...]


@dataclass(frozen=True)
class Vocabulary:
    """A closed set of concepts. `counts[i]` names the number i + 1; `held_out_pairs` are (color, shape) not trained."""

    name: str
    colors: tuple[Concept, ...]
    shapes: tuple[Concept, ...]
    textures: tuple[Concept, ...]
    relations: tuple[Concept, ...]
    counts: tuple[Concept, ...]
    held_out_pairs: frozenset[tuple[str, str]]
    synonym_probability: float = 0.3

    def __post_init__(self) -> None:
        unknown = self.held_out_pairs - set(self.pairs)
        if unknown:
            raise ValueError(f"held-out pairs {sorted(unknown)} are not among the colours x shapes of {self.name!r}")

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Every (color, shape), in the order of the vocabulary."""
        return tuple((color.name, shape.name) for color, shape in product(self.colors, self.shapes))

    @property
    def concepts(self) -> tuple[Concept, ...]:
        return self.colors + self.shapes + self.textures + self.relations + self.counts

    def concept(self, name: str) -> Concept:
        """The concept called `name`; the error of an unknown name lists the known ones."""
        for concept in self.concepts:
            if concept.name == name:
                return concept
        known = ", ".join(concept.name for concept in self.concepts)
        raise ValueError(f"vocabulary {self.name!r} has no concept {name!r}; it has: {known}")


# Saturated, and at least 90 apart from each other in RGB so that a 10 % error of exposure cannot swap two of them.
PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (228, 38, 48),
    "green": (44, 184, 72),
    "blue": (48, 92, 246),
    "yellow": (250, 218, 52),
    "purple": (158, 62, 212),
    "orange": (250, 132, 30),
    "cyan": (56, 208, 232),
    "white": (242, 242, 242),
}
GROUND: tuple[int, int, int] = (18, 18, 24)

_COLORS = (
    Concept("red", ("scarlet",), ("crimson", "ruby")),
    Concept("green", ("jade",), ("emerald", "verdant")),
    Concept("blue", ("cobalt",), ("navy", "azure", "sapphire")),
    Concept("yellow", ("canary",), ("golden", "lemon")),
    Concept("purple", ("violet",), ("lavender", "plum")),
    Concept("orange", ("tangerine",), ("apricot", "pumpkin")),
    Concept("cyan", ("turquoise",), ("aqua", "teal")),
    Concept("white", ("ivory",), ("snowy", "milky")),
)
_SHAPES = (
    Concept("circle", ("ball",), ("disc", "disk")),
    Concept("square", ("block",), ("box", "cube")),
    Concept("triangle", ("wedge",), ("pyramid", "cone")),
    Concept("cross", ("crosshair",), ("plus sign", "crucifix")),
    Concept("star", ("asterisk",), ("pentagram", "sparkle")),
    Concept("ring", ("hoop",), ("donut", "loop")),
)
_TEXTURES = (
    Concept("solid", ("plain",), ("uniform", "flat")),
    Concept("striped", ("banded",), ("lined", "barred")),
    Concept("dotted", ("spotted",), ("speckled", "freckled")),
)
_RELATIONS = (
    Concept("left of", ("to the left of",), ("to the left-hand side of", "on the left side of")),
    Concept("right of", ("to the right of",), ("to the right-hand side of", "on the right side of")),
    Concept("above", ("higher than",), ("over", "on top of")),
    Concept("below", ("lower than",), ("under", "beneath")),
)
_COUNTS = (
    Concept("one", ("a single",), ("a lone", "a solitary")),
    Concept("two", ("a pair of",), ("a couple of", "a duo of")),
    Concept("three", ("a set of three",), ("a trio of", "a triplet of")),
    Concept("four", ("a set of four",), ("a quartet of", "a foursome of")),
)

_PLAIN = {
    "small": Vocabulary(
        name="small",
        colors=_COLORS[:4],
        shapes=_SHAPES[:4],
        textures=_TEXTURES,
        relations=_RELATIONS,
        counts=_COUNTS[:3],
        held_out_pairs=frozenset({("yellow", "cross"), ("blue", "triangle")}),
    ),
    "full": Vocabulary(
        name="full",
        colors=_COLORS,
        shapes=_SHAPES,
        textures=_TEXTURES,
        relations=_RELATIONS,
        counts=_COUNTS,
        held_out_pairs=frozenset(
            {
                ("yellow", "cross"),
                ("blue", "triangle"),
                ("red", "star"),
                ("cyan", "square"),
                ("purple", "ring"),
                ("white", "circle"),
            }
        ),
    ),
}

# More training synonyms, so that a language model's own geometry of words can be learnt from, not two points of it.
# Colours are widened by names of the xkcd colour survey (CC0) whose hue lies by the concept's own, and by gems, plants
# and dyes. Nothing here shares a word or a stem with a held-out synonym.
_MORE = {
    "red": "vermilion, cherry, maroon, burgundy, cardinal, strawberry, tomato, reddish, carmine, rouge, cranberry, "
    "raspberry, garnet, wine, fiery, blood-red",
    "green": "lime, olive, mint, moss, fern, grassy, leafy, greenish, shamrock, pistachio, spearmint, kiwi, forest, "
    "malachite, lush green, avocado",
    "blue": "indigo, cerulean, ultramarine, sky blue, denim, oceanic, bluish, sea blue, cornflower, royal blue, "
    "lapis, blueberry, midnight blue, marine, steel blue, delft",
    "yellow": "amber, mustard, banana, saffron, honey, sunflower, yellowish, corn, dandelion, ochre, butter, straw, "
    "wheat, citrine, blond, custard, pineapple",
    "purple": "mauve, lilac, amethyst, grape, purplish",
    "orange": "carrot, peach, rusty, orangish",
    "cyan": "cyanic, lagoon",
    "white": "pearl, chalky, alabaster, whitish",
    "circle": "sphere, round shape, orb, dot, globe, coin, wheel, roundel, bubble, plate, marble",
    "square": "tile, quadrilateral, rectangle, four-sided shape, brick, crate, parcel, dice, pixel",
    "triangle": "three-sided shape, triangular shape, arrowhead, tent, tetrahedron, spike, peak, prism",
    "cross": "crossing, letter x, crossed shape, crossroad, crossed bar, x shape, x mark, rood",
    "star": "starburst, hexagram, five-pointed shape",
    "ring": "annulus, circlet, bagel, tire",
    "solid": "filled, smooth, unpatterned, blank, unmarked, homogeneous, monochrome, untextured",
    "striped": "streaked, stripy, zebra, ribbed, pinstriped, hatched, ruled, corrugated",
    "dotted": "polka-dot, dappled, pitted, stippled, flecked, mottled, spotty",
    "left of": "leftward of, left from, left beside",
    "right of": "rightward of, right from, right beside",
    "above": "upward of, up from",
    "below": "downward of, down from",
}


def _enrich(concepts: tuple[Concept, ...]) -> tuple[Concept, ...]:
    return tuple(
        replace(c, synonyms=(*c.synonyms, *_MORE[c.name].split(", ")) if c.name in _MORE else c.synonyms)
        for c in concepts
    )


def _many_words(plain: Vocabulary) -> Vocabulary:
    return replace(
        plain,
        colors=_enrich(plain.colors),
        shapes=_enrich(plain.shapes),
        textures=_enrich(plain.textures),
        relations=_enrich(plain.relations),
        synonym_probability=0.5,
    )


VOCABULARIES: Registry[Vocabulary] = Registry(
    "vocabulary", _PLAIN | {f"{name}, many words": _many_words(plain) for name, plain in _PLAIN.items()}
)
