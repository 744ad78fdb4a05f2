"""Vision models: the table of targets, each a row of facts, and which row a diffusers config belongs to."""

from collections.abc import Mapping
from typing import Any

from ..registry import Registry
from .aura_flow import AURA_FLOW
from .call import NUM_TIMESTEPS, Told
from .chroma import CHROMA
from .cosmos import COSMOS
from .ernie_image import ERNIE_IMAGE
from .flux import FLUX, FLUX_SCHNELL
from .flux2 import FLUX2
from .keys import KeyFormat
from .latents import LatentSpace, latent_scale, latent_space
from .lumina2 import LUMINA2
from .pixart import PIXART, PIXART_SIGMA
from .qwen_image import QWEN_IMAGE
from .sana import SANA
from .sd3 import SD3
from .target import VisionTarget
from .text import says
from .unet import KOLORS, LDM, SD1, SDXL, SDXL_REFINER, UNET
from .wan import WAN
from .z_image import Z_IMAGE

# In the order in which ``target_of`` asks them: a row that stands for many models comes after those of one.
_ROWS = (SD1, LDM, KOLORS, SDXL, PIXART_SIGMA, PIXART, UNET)
_ROWS += (SD3, FLUX_SCHNELL, FLUX, Z_IMAGE, LUMINA2, QWEN_IMAGE, AURA_FLOW, CHROMA, COSMOS, FLUX2, WAN, SANA)
_ROWS += (ERNIE_IMAGE,)
VISION_TARGETS = Registry("vision target", {row.name: row for row in _ROWS})


def target_of(config: Mapping[str, Any]) -> VisionTarget:
    """The row for a diffusers network with this config.json. Raises ValueError where no row knows it, for
    SDXL's refiner, whose config looks like one of SDXL, and for HunyuanDiT."""
    if says(config, SDXL_REFINER):
        raise ValueError(
            "this U-Net is SDXL's refiner (context width 1280, five sizes and an aesthetic score), which ends pictures "
            "that SDXL began; bridges speak to the base model (context width 2048): take SDXL's base"
        )
    if config.get("_class_name") == "HunyuanDiT2DModel":
        raise ValueError(
            "HunyuanDiT hears two encoders at once, 77 and 256 tokens filled up with vectors that it learned, and "
            "makes its pooled vector of the second's padding too; a bridge gives one sequence of any length: take "
            "another vision model"
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


__all__ = [
    "NUM_TIMESTEPS",
    "VISION_TARGETS",
    "KeyFormat",
    "LatentSpace",
    "Told",
    "VisionTarget",
    "latent_scale",
    "latent_space",
    "target_of",
]
