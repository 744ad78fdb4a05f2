"""The renderer: anti-aliased shapes from signed distances, numpy only."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .scene import CANVAS, Object, Scene
from .vocabulary import GROUND, PALETTE

PERIOD = 14.0  # px at 128, of stripes and of the grid of dots
DOT_RADIUS = 4.0
DARK = 0.32  # brightness of a stripe or dot, as a share of the object's colour

SQUARE_HALF_SIDE = 0.86  # shares of the radius, chosen so that all shapes look equally big
CROSS_HALF_ARM = 0.36
STAR_OUTER, STAR_INNER = 1.08, 0.50
RING_INNER = 0.5

Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _circle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.sqrt(u * u + v * v) - 1.0


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u), np.abs(v)) - SQUARE_HALF_SIDE


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    # Equilateral on its base, two radii wide, its bounding box centred on the object's centre.
    half_height = math.sqrt(3) / 2
    slope = (np.abs(u) * math.sqrt(3) - (v + half_height)) / 2
    return np.maximum(slope, v - half_height)


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    a, b = np.abs(u), np.abs(v)
    return np.maximum(np.maximum(a, b) - 1.0, np.minimum(a, b) - CROSS_HALF_ARM)


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    # Folded into one tenth of the star, where its outline is the line from a tip to an inner corner.
    fifth = 2 * math.pi / 5
    angle = np.arctan2(u, -v)
    angle = np.abs(angle - fifth * np.round(angle / fifth))
    radius = np.sqrt(u * u + v * v)
    inner_x, inner_y = STAR_INNER * math.cos(fifth / 2), STAR_INNER * math.sin(fifth / 2)
    normal_x, normal_y = inner_y, STAR_OUTER - inner_x
    length = math.hypot(normal_x, normal_y)
    return ((radius * np.cos(angle) - STAR_OUTER) * normal_x + radius * np.sin(angle) * normal_y) / length


def _ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    middle, half_width = (1 + RING_INNER) / 2, (1 - RING_INNER) / 2
    return np.abs(np.sqrt(u * u + v * v) - middle) - half_width


# Signed distance to the outline, in radii, negative inside; u to the right and v downwards from the centre, in radii.
DISTANCES: dict[str, Distance] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "star": _star,
    "ring": _ring,
}


def render(scene: Scene, size: int = CANVAS) -> np.ndarray:
    """The picture of `scene`: uint8 [size size 3] RGB on a very dark ground. A pure function of the scene."""
    scale = size / CANVAS
    image = np.empty((size, size, 3), np.float32)
    image[:] = GROUND
    for thing in scene.objects:
        _draw(image, thing, scale)
    return (image + 0.5).astype(np.uint8)


def _draw(image: np.ndarray, thing: Object, scale: float) -> None:
    if thing.shape not in DISTANCES or thing.color not in PALETTE:
        known = f"shapes {', '.join(DISTANCES)} and colours {', '.join(PALETTE)}"
        raise ValueError(f"cannot draw a {thing.color} {thing.shape}; known are {known}")
    size = image.shape[0]
    x, y, radius = thing.x * scale, thing.y * scale, thing.radius * scale
    reach = radius * STAR_OUTER + 1.0
    x0, x1 = max(0, int(x - reach)), min(size, int(x + reach) + 1)
    y0, y1 = max(0, int(y - reach)), min(size, int(y + reach) + 1)
    dx = (np.arange(x0, x1, dtype=np.float32) + (0.5 - x))[None, :]  # pixel centres, from the object's centre
    dy = (np.arange(y0, y1, dtype=np.float32) + (0.5 - y))[:, None]
    cover = np.clip(0.5 - radius * DISTANCES[thing.shape](dx / radius, dy / radius), 0, 1)  # [h w]
    light = 1.0 - (1.0 - DARK) * _darkness(thing.texture, dx, dy, scale)  # [h w] or [h 1]
    color = np.asarray(PALETTE[thing.color], np.float32)
    box = image[y0:y1, x0:x1]
    box += cover[..., None] * (np.asarray(light)[..., None] * color - box)


def _darkness(texture: str, dx: np.ndarray, dy: np.ndarray, scale: float) -> np.ndarray:
    """How dark the texture is at each pixel, 0 to 1; fixed to the object's centre. [h w], [h 1] or [1 1]"""
    if texture == "solid":
        return np.zeros((1, 1), np.float32)
    period = PERIOD * scale
    fold_y = np.abs(dy - period * np.round(dy / period))
    if texture == "striped":  # a dark band in the middle, so that the outermost band of most shapes is bright
        return np.clip(0.5 + period / 4 - fold_y, 0, 1)
    if texture == "dotted":
        fold_x = np.abs(dx - period * np.round(dx / period))
        return np.clip(0.5 + DOT_RADIUS * scale - np.sqrt(fold_x * fold_x + fold_y * fold_y), 0, 1)
    raise ValueError(f"cannot draw the texture {texture!r}; known are solid, striped, dotted")
