"""A diffusers ``ErnieImageTransformer2DModel`` as the host's ``ErnieImageModel``, whatever its size; the names of
its weights are diffusers'.

The host's own detection knows the released size alone.
"""

from __future__ import annotations

from typing import Any

from comfy.supported_models_base import BASE
from torch import nn

from .folder import demand
from .host_model import HostModel
from .stock import described

try:
    from comfy.ldm.ernie.model import ErnieImageModel
except ModuleNotFoundError:  # of an older host, which ``needs`` is refused on
    ErnieImageModel = nn.Module

DEMANDS: dict[str, Any] = {"patch_size": 1, "qk_layernorm": True}


def describe(config: dict[str, Any], scheduler: dict[str, Any], row: Any, space: Any) -> BASE:
    unet_config = shape(config, row)
    return described("ErnieImage", unet_config, scheduler, row, space, unet_config["in_channels"])


def shape(config: dict[str, Any], row: Any) -> dict[str, Any]:
    """The host's ``unet_config`` from diffusers' ``config.json``; refuses what the host's network cannot be."""
    demand(config, DEMANDS, "ERNIE-Image transformer")
    width, channels = config.get("hidden_size", 3072), config.get("in_channels", 128)
    if row.context_width(config) == width:
        raise ValueError(
            f"this ERNIE-Image transformer has text_in_dim = hidden_size = {width}, and so no weight where text "
            "enters, by which bridges are told from others"
        )
    return {
        "image_model": "ernie",
        "hidden_size": width,
        "num_attention_heads": config.get("num_attention_heads", 24),
        "num_layers": config.get("num_layers", 24),
        "ffn_hidden_size": config.get("ffn_hidden_size", 8192),
        "in_channels": channels,
        "out_channels": config.get("out_channels", channels),
        "patch_size": 1,
        "text_in_dim": row.context_width(config),
        "rope_theta": config.get("rope_theta", 256),
        "rope_axes_dim": tuple(config.get("rope_axes_dim", (32, 48, 48))),
        "eps": config.get("eps", 1e-6),
    }


ERNIE_IMAGE = HostModel(
    network=ErnieImageModel,
    context_weight="text_proj.weight",
    needs=("ErnieImage",),
    describe=describe,
)
