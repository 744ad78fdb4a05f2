"""diffusers' class of a network -> its twin in ComfyUI."""

from __future__ import annotations

from .host_model import Twin
from .pixart import PIXART
from .unet import UNET

TWINS: dict[str, Twin] = {"UNet2DConditionModel": UNET, "PixArtTransformer2DModel": PIXART}
