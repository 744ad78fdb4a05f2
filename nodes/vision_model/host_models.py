"""The table of diffusers network classes and the ComfyUI models they are loaded as."""

from __future__ import annotations

from .host_model import HostModel
from .pixart import PIXART
from .unet import UNET

HOST_MODELS: dict[str, HostModel] = {"UNet2DConditionModel": UNET, "PixArtTransformer2DModel": PIXART}
