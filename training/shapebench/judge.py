"""The judge: a program that reads a picture and says which parts of its prompt hold.

It knows nothing but the palette, the ground and the outlines of the renderer. Foreground by distance to the ground,
connected components, colour by a vote of nearest palette entries, shape by overlap with blurred outlines, texture by
the pattern of dark pixels, relation by centroids. Its tolerances are for the soft edges and small colour errors of a
decoder: `ceiling` and `chance` in bench.py say how well it reads true pictures and how often wrong ones please it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from scipy import ndimage

from .render import DISTANCES
from .scene import CANVAS, DIRECTIONS, PromptSpec, Scene
from .vocabulary import GROUND, PALETTE

FOREGROUND = 28.0  # RGB distance to the ground; the dark stripes of the darkest colour are 45 away
SPECK = 0.006  # components below this share of the picture are dirt; the smallest real object covers 0.022
HOLE = 0.05  # smaller shares of a component are texture: a dot is 0.04; the hole of a blurred ring still 0.08
EDGE = 4.0  # canvas pixels that a component is shrunk by before its inside is looked at: soft edges pass for dark
INSIDE_SHARE = 0.1  # of a component, that must be left then
HALF = 0.5  # of a component's own brightness: where the edge of a blurred thing was before the blur
EXPOSURE = (0.6, 1.1)  # between stripes a blurred colour is dimmer, but no other hue
MIN_OVERLAP = 0.70  # intersection over union with the best outline, else the thing has no shape we know
BRIGHT = 0.62  # of a component's own brightness; stripes and dots are at 0.32
DARK_SHARE = 0.08  # of a component's inside, from which on it is not solid
STRIPED = 0.65  # share of the variance that lies between rows: above 0.9 for stripes, below 0.6 for dots
TEMPLATE = 24  # side of the normalised outlines
MOST_OBJECTS = 8  # more components than this are not matched for relations

_NAMES = tuple(PALETTE)
_COLORS = np.array([PALETTE[name] for name in _NAMES], np.float32)  # [K 3]
_ASPECTS = ("count", "color", "shape", "texture", "bind", "relation")


@dataclass(frozen=True)
class Found:
    """One thing the judge saw: names, or None for a shape unlike all; the centroid in canvas pixels (128 across)."""

    color: str
    shape: str | None
    texture: str
    x: float
    y: float


@dataclass(frozen=True)
class Verdict:
    """What holds of a prompt; None where the prompt names no such thing.

    count: as many things as named; color, shape, texture: each named one is there; bind: each named combination is
    there in one thing; relation: the two things that best fit the words stand as said.
    """

    count: bool
    color: bool
    shape: bool
    texture: bool | None
    bind: bool
    relation: bool | None
    found: tuple[Found, ...] = ()

    @property
    def correct(self) -> bool:
        """Everything that the prompt names holds."""
        return all(getattr(self, aspect) is not False for aspect in _ASPECTS)


def judge(image: np.ndarray, prompt: Scene | PromptSpec) -> Verdict:
    """Judge `image` (uint8 [H W 3] RGB, square or not, 64 px or more) against what `prompt` names."""
    spec = prompt.spec if isinstance(prompt, Scene) else prompt
    found = look(image)
    named = spec.objects
    textures = [texture for _, _, texture in named if texture is not None]
    return Verdict(
        count=len(found) == len(named),
        color=_all_there((color for color, _, _ in named), (thing.color for thing in found)),
        shape=_all_there((shape for _, shape, _ in named), (thing.shape for thing in found)),
        texture=_all_there(textures, (thing.texture for thing in found)) if textures else None,
        bind=_all_bound(spec, found),
        relation=_related(spec, found) if spec.relation else None,
        found=found,
    )


def look(image: np.ndarray) -> tuple[Found, ...]:
    """What is in `image` (uint8 [H W 3]), from the largest thing to the smallest."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"the judge reads uint8 [H W 3], got {image.dtype} {list(image.shape)}; convert it first")
    # A 3 x 3 mean takes most of the noise and costs a pixel of sharpness.
    pixels = ndimage.uniform_filter(image.astype(np.float32), (3, 3, 1), mode="nearest")  # pyright: ignore[reportArgumentType]
    distance = np.sqrt(((pixels - np.asarray(GROUND, np.float32)) ** 2).sum(-1))  # [H W]
    labels, number = ndimage.label(distance > FOREGROUND)  # pyright: ignore[reportGeneralTypeIssues]
    areas = np.bincount(labels.ravel(), minlength=number + 1)
    keep = [i for i in range(1, number + 1) if areas[i] >= SPECK * distance.size]
    boxes = ndimage.find_objects(labels)
    scale = CANVAS / max(distance.shape)
    things = []
    for i in sorted(keep, key=lambda i: -areas[i]):
        box = boxes[i - 1]
        things.append(_describe(pixels[box], distance[box], labels[box] == i, (box[1].start, box[0].start), scale))
    return tuple(things)


def _describe(
    pixels: np.ndarray, distance: np.ndarray, mask: np.ndarray, corner: tuple[int, int], scale: float
) -> Found:
    """Name one component: its crops of the smoothed picture [h w 3], the distance to the ground and its mask [h w]."""
    mask = _without_small_holes(mask)
    inside = _inside(mask, round(EDGE / scale))
    # The brightness of the bare colour: half the pixels are bright in every texture, so a high quantile is safe.
    level = distance / np.quantile(distance[inside], 0.85)
    texture = _texture(level, inside)
    if texture == "solid":
        # Where no dark stripe can be lost, the outline is that of half brightness, which blur leaves in its place.
        mask = mask & (level > HALF)
    rows, columns = np.nonzero(mask)
    return Found(
        color=_color(pixels[inside & (level > BRIGHT)]),
        shape=_shape(mask),
        texture=texture,
        x=(float(columns.mean()) + corner[0] + 0.5) * scale,
        y=(float(rows.mean()) + corner[1] + 0.5) * scale,
    )


def _inside(mask: np.ndarray, edge: int) -> np.ndarray:
    """The mask without its soft edge of `edge` pixels, or of fewer where a thin thing would vanish."""
    for iterations in range(edge, 0, -1):
        inside = ndimage.binary_erosion(mask, iterations=iterations)
        if inside.sum() > INSIDE_SHARE * mask.sum():
            return inside
    return mask


def _color(pixels: np.ndarray) -> str:
    """The palette entry that most of `pixels` [N 3] are nearest to, each entry dimmed or lit to suit the pixel."""
    light = (pixels @ _COLORS.T / (_COLORS**2).sum(1)).clip(*EXPOSURE)  # [N K]
    nearest = ((pixels[:, None] - light[..., None] * _COLORS) ** 2).sum(-1).argmin(1)
    return _NAMES[int(np.bincount(nearest, minlength=len(_NAMES)).argmax())]


def _without_small_holes(mask: np.ndarray) -> np.ndarray:
    holes, number = ndimage.label(~np.pad(mask, 1, constant_values=False))  # pyright: ignore[reportGeneralTypeIssues]
    if number < 2:  # the outside only
        return mask
    areas = np.bincount(holes.ravel())
    small = areas < HOLE * mask.sum()
    small[holes[0, 0]] = False
    return mask | small[holes][1:-1, 1:-1]


def _normalised(mask: np.ndarray) -> np.ndarray:
    """The mask centred in a square of its longer side, sampled at TEMPLATE x TEMPLATE points. bool"""
    height, width = mask.shape
    side = max(height, width)
    grid = (np.arange(TEMPLATE) + 0.5) * (side / TEMPLATE)
    y = np.floor(grid - (side - height) / 2).astype(int)
    x = np.floor(grid - (side - width) / 2).astype(int)
    within = ((y >= 0) & (y < height))[:, None] & ((x >= 0) & (x < width))[None, :]
    return mask[np.ix_(y.clip(0, height - 1), x.clip(0, width - 1))] & within


def _outline(shape: str, blur: float, level: float) -> np.ndarray:
    """The normalised outline of `shape` after a Gaussian `blur` (in radii), cut at `level` of its brightness."""
    axis = np.linspace(-1.6, 1.6, 161, dtype=np.float32)  # 50 samples a radius
    cover = (DISTANCES[shape](axis[None, :], axis[:, None]) < 0).astype(np.float32)
    return _normalised(_trimmed(ndimage.gaussian_filter(cover, 50 * blur) > level))


def _trimmed(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


# Sharp, a little soft and soft; cut at half brightness as solid things are, and low as textured things are.
_LOOKS = tuple((shape, blur, level) for shape in DISTANCES for blur in (0.02, 0.1, 0.17) for level in (HALF, 0.18))
_OUTLINES = np.stack([_outline(*look).ravel() for look in _LOOKS])  # [L TEMPLATE*TEMPLATE] bool


def _shape(mask: np.ndarray) -> str | None:
    seen = _normalised(_trimmed(mask)).ravel()
    overlap = (_OUTLINES & seen).sum(1) / (_OUTLINES | seen).sum(1)
    best = int(overlap.argmax())
    return _LOOKS[best][0] if overlap[best] >= MIN_OVERLAP else None


def _texture(level: np.ndarray, inside: np.ndarray) -> str:
    if (level[inside] < BRIGHT).mean() < DARK_SHARE:
        return "solid"
    number = inside.sum(1)
    values = np.where(inside, level.clip(0, 1), 0)
    mean = values.sum() / number.sum()
    total = np.where(inside, (values - mean) ** 2, 0).sum()
    by_rows = (number * (values.sum(1) / np.maximum(number, 1) - mean) ** 2).sum()
    return "striped" if by_rows > STRIPED * total else "dotted"


def _all_there(named: Iterable[Hashable], seen: Iterable[Hashable]) -> bool:
    """Whether each named thing is seen, a thing named twice at least twice."""
    return not Counter(named) - Counter(seen)


def _all_bound(spec: PromptSpec, found: tuple[Found, ...]) -> bool:
    """Whether different things fit the named objects, one each."""
    return any(
        all(_fit(thing, named) == 3 for thing, named in zip(chosen, spec.objects, strict=True))
        for chosen in permutations(found[:MOST_OBJECTS], len(spec.objects))
    )


def _related(spec: PromptSpec, found: tuple[Found, ...]) -> bool:
    """Whether the pair of things that fits objects[0] and objects[1] best stands in the named relation."""
    pairs = list(permutations(found[:MOST_OBJECTS], 2))
    if not pairs:
        return False
    first, second = max(pairs, key=lambda pair: _fit(pair[0], spec.objects[0]) + _fit(pair[1], spec.objects[1]))
    dx, dy = first.x - second.x, first.y - second.y
    right, down = DIRECTIONS[spec.relation or ""]
    along, across = dx * right + dy * down, dx * down + dy * right
    return along > abs(across)


def _fit(thing: Found, named: tuple[str, str, str | None]) -> float:
    """3 for a full fit; colour counts most, since it is what the eye and the judge are surest of."""
    color, shape, texture = named
    return 1.5 * (thing.color == color) + 1.0 * (thing.shape == shape) + 0.5 * (texture in (None, thing.texture))
