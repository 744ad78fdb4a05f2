"""Vision models as rows of facts."""

from collections.abc import Mapping
from typing import Any

from ..registry import Registry
from .keys import KeyFormat
from .latents import latent_scale
from .pixart import PIXART
from .target import VisionTarget
from .unet import LDM, SD1, SDXL, UNET

# In the order in which ``target_of`` asks them: a row that stands for many models comes after those of one.
VISION_TARGETS = Registry("vision target", {row.name: row for row in (SD1, LDM, SDXL, PIXART, UNET)})


def target_of(config: Mapping[str, Any]) -> VisionTarget:
    """The row for a diffusers network with this config.json. Raises ValueError for a class that no row knows."""
    for row in VISION_TARGETS.values():
        if row.is_of(config):
            return row
    known = ", ".join(sorted({row.diffusers_class for row in VISION_TARGETS.values()}))
    raise ValueError(f"a vision model of class {config.get('_class_name')!r} is not known; known: {known}")


__all__ = ["VISION_TARGETS", "KeyFormat", "VisionTarget", "latent_scale", "target_of"]
