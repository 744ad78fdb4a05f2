"""diffusers' class of a network -> its twin in ComfyUI."""

from __future__ import annotations

from .pixart import PIXART
from .twin import Twin
from .unet import UNET

TWINS: dict[str, Twin] = {"UNet2DConditionModel": UNET, "PixArtTransformer2DModel": PIXART}
