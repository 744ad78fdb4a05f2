"""Resize, crop and aspect-ratio buckets: a picture of any shape becomes one of the sizes that are trained on."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

import numpy as np

from ..recipe import DataSection

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)

ORIENTATION, ON_ITS_SIDE = 0x0112, (5, 6, 7, 8)  # of EXIF


class UnreadableImage(ValueError):
    """One picture cannot be read; the message names it and says why."""


class Size(NamedTuple):
    """Pixels."""

    height: int
    width: int


class AspectBuckets:
    """The shapes of a data section and the way into them: a picture is turned upright as its EXIF says, scaled
    (bilinear) until it covers the shape nearest to its own, and cropped to the centre. Small pictures are scaled up.
    """

    def __init__(self, section: DataSection):
        if section.buckets:
            self.sizes = bucket_sizes(section.resolution, section.bucket_step, section.bucket_ratio)
            if len(self.sizes) == 1:
                log.warning(
                    "data.buckets has the square alone: data.bucket_step %d is too large for data.resolution %d",
                    section.bucket_step,
                    section.resolution,
                )
        else:
            self.sizes = [Size(section.resolution, section.resolution)]

    def size(self, width: int, height: int) -> Size:
        """The shape of the nearest aspect ratio, in which wide and high count alike; the larger of two."""

        def distance(size: Size) -> tuple[float, int]:
            return abs(math.log(size.width / size.height) - math.log(width / height)), -size.width * size.height

        return min(self.sizes, key=distance)

    def look(self, file: str | Path, name: str) -> tuple[Size, Size]:
        """(a picture's own size, upright, the shape that it gets), by its header alone; raises as ``read`` does."""
        from PIL import Image

        try:
            with Image.open(file) as opened:
                # A PNG's own getexif decodes the picture, for EXIF that may stand behind it.
                turned = Image.Image.getexif(opened).get(ORIENTATION) in ON_ITS_SIDE
                width, height = opened.size[::-1] if turned else opened.size
                return Size(height, width), self.size(width, height)
        except Exception as error:  # as in ``read``
            raise UnreadableImage(f"{name}: {error or type(error).__name__}") from None

    def read(self, file: str | Path | IO[bytes], name: str) -> np.ndarray:
        """uint8 [height width 3]; raises UnreadableImage with ``name``."""
        from PIL import Image, ImageOps

        try:
            with Image.open(file) as opened:
                upright = eight_bits(ImageOps.exif_transpose(opened)).convert("RGB")
                size = self.size(*upright.size)
                return np.asarray(ImageOps.fit(upright, (size.width, size.height), Image.Resampling.BILINEAR))
        except MemoryError:
            raise
        except Exception as error:  # decoders raise whatever a broken file leads them to
            raise UnreadableImage(f"{name}: {error or type(error).__name__}") from None


def eight_bits(image: Image.Image) -> Image.Image:
    """A gray picture of 16 bits in 8, where Pillow would cut all above 255 off (findings/sixteen-bit-gray.sh);
    others as they are. Raises ValueError where a channel has 32 bits, since nobody can say what is white there."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"has 32 bits a pixel (mode {image.mode}) and no known white, save it with 8 or 16")
    return image


def bucket_sizes(resolution: int, step: int, ratio: float) -> list[Size]:
    """For each width the greatest height of at most resolution^2 pixels in all, and the same turned by a quarter."""
    found = set()
    for width in range(step, int(resolution * ratio) + 1, step):
        height = resolution**2 // width // step * step
        if height and max(width, height) <= ratio * min(width, height):
            found |= {Size(height, width), Size(width, height)}
    return sorted(found)
