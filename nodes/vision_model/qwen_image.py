"""A diffusers ``QwenImageTransformer2DModel`` as the host's class of the same name, whatever its size; the names of its
weights are diffusers'."""

from __future__ import annotations

from typing import Any

from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel
from comfy.supported_models_base import BASE

from .folder import demand
from .host_model import HostModel
from .stock import described

# What the host's class has no knob for, or has it for models that are edited with.
DEMANDS: dict[str, Any] = {
    "patch_size": 2,
    "guidance_embeds": False,
    "zero_cond_t": False,
    "use_additional_t_cond": False,
    "use_layer3d_rope": False,
}


def describe(config: dict[str, Any], scheduler: dict[str, Any], row: Any, space: Any) -> BASE:
    unet_config = shape(config, row)
    return described("QwenImage", unet_config, scheduler, row, space, unet_config["in_channels"] // 4, by_mu=True)


def shape(config: dict[str, Any], row: Any) -> dict[str, Any]:
    """The host's ``unet_config`` from diffusers' ``config.json``; refuses what the host's network cannot be."""
    demand(config, DEMANDS, "Qwen-Image transformer")
    return {
        "image_model": "qwen_image",
        "patch_size": 2,
        "in_channels": config.get("in_channels", 64),
        "out_channels": config.get("out_channels") or config.get("in_channels", 64),
        "num_layers": config.get("num_layers", 60),
        "attention_head_dim": config.get("attention_head_dim", 128),
        "num_attention_heads": config.get("num_attention_heads", 24),
        "joint_attention_dim": row.context_width(config),
        "axes_dims_rope": tuple(config.get("axes_dims_rope", (16, 56, 56))),
    }


QWEN_IMAGE = HostModel(
    network=QwenImageTransformer2DModel,
    context_weight="txt_in.weight",
    describe=describe,
)
