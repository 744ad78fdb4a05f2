"""Vision models as rows of facts."""

from ..registry import Registry
from .keys import KeyFormat
from .latents import latent_scale
from .pixart import PIXART
from .target import VisionTarget
from .unet import LDM, SD1, SDXL, UNET

VISION_TARGETS = Registry("vision target", {row.name: row for row in (SD1, LDM, SDXL, PIXART, UNET)})

__all__ = ["VISION_TARGETS", "KeyFormat", "VisionTarget", "latent_scale"]
