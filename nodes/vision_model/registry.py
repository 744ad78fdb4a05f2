"""The table of diffusers network classes and the ComfyUI models they are loaded as."""

from __future__ import annotations

from typing import Any

from ...lavi_core.registry import Registry
from .host_model import HostModel
from .pixart import PIXART
from .unet import UNET

HOST_MODELS: Registry[HostModel] = Registry(
    "network class for ComfyUI", {"UNet2DConditionModel": UNET, "PixArtTransformer2DModel": PIXART}
)


def host_model_of(row: Any, what: str) -> HostModel:
    """Of a row of the core. what: that needs it, for the message. Raises ValueError where these nodes have none."""
    if row.diffusers_class not in HOST_MODELS:
        raise ValueError(
            f"{what} is of {row.name}, for which bridges are trained and drawn by lavi-bridge (train, sample), while "
            "these nodes speak to U-Nets and PixArt alone: take such a model here"
        )
    return HOST_MODELS[row.diffusers_class]
