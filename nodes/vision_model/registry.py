"""The table of diffusers network classes and the ComfyUI models they are loaded as."""

from __future__ import annotations

from ...lavi_core.registry import Registry
from .host_model import HostModel
from .pixart import PIXART
from .unet import UNET

HOST_MODELS: Registry[HostModel] = Registry(
    "network class for ComfyUI", {"UNet2DConditionModel": UNET, "PixArtTransformer2DModel": PIXART}
)
