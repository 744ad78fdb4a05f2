"""Vision models: the table of targets, each a row of facts, and which row a diffusers config belongs to."""

from collections.abc import Mapping
from typing import Any

from ..registry import Registry
from .keys import KeyFormat
from .latents import latent_scale
from .pixart import PIXART
from .target import VisionTarget, says
from .unet import LDM, SD1, SDXL, SDXL_REFINER, UNET

# In the order in which ``target_of`` asks them: a row that stands for many models comes after those of one.
VISION_TARGETS = Registry("vision target", {row.name: row for row in (SD1, LDM, SDXL, PIXART, UNET)})


def target_of(config: Mapping[str, Any]) -> VisionTarget:
    """The row for a diffusers network with this config.json. Raises ValueError where no row knows it, and for
    SDXL's refiner, whose config looks like one of SDXL."""
    if says(config, SDXL_REFINER):
        raise ValueError(
            "this U-Net is SDXL's refiner (context width 1280, five sizes and an aesthetic score), which ends pictures "
            "that SDXL began; bridges speak to the base model (context width 2048): take SDXL's base"
        )
    for row in VISION_TARGETS.values():
        if row.is_of(config):
            return row
    found = repr(config.get("_class_name"))
    known = ", ".join(sorted({row.diffusers_class for row in VISION_TARGETS.values()}))
    kin = [row for row in VISION_TARGETS.values() if row.diffusers_class == config.get("_class_name")]
    if kin:  # no row of its class fits: say what each of them asks for
        found += " with " + ", ".join(f"{key} = {config.get(key)!r}" for key in kin[-1].told_by)
        known = "; ".join(f"{row.name}: {dict(row.told_by)}" for row in kin)
    raise ValueError(f"a vision model of class {found} is not known; known: {known}")


__all__ = ["VISION_TARGETS", "KeyFormat", "VisionTarget", "latent_scale", "target_of"]
