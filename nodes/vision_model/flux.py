"""A diffusers ``FluxTransformer2DModel`` as the host's Flux, whatever its size: dev, and schnell without guidance."""

from __future__ import annotations

from typing import Any

import comfy.utils
from comfy.ldm.flux.model import Flux, FluxParams
from comfy.supported_models_base import BASE
from torch import Tensor

from .folder import demand
from .host_model import HostModel
from .renaming import renamed
from .stock import described, only_known

DEMANDS: dict[str, Any] = {"patch_size": 1}


def describe(config: dict[str, Any], scheduler: dict[str, Any], row: Any, space: Any) -> BASE:
    """Without guidance embedding it is the host's FluxSchnell, whose flow has no mu."""
    guided = config.get("guidance_embeds", False)
    unet_config = shape(config, row)
    channels = unet_config["out_channels"]
    name = "Flux" if guided else "FluxSchnell"
    return described(name, unet_config, scheduler, row, space, channels, by_mu=guided)


def shape(config: dict[str, Any], row: Any) -> dict[str, Any]:
    """The host's ``unet_config`` from diffusers' ``config.json``; refuses what the host's Flux cannot be."""
    demand(config, DEMANDS, "Flux transformer")
    heads, head, axes, channels = blocks(config, "Flux transformer")
    unet_config = {
        "in_channels": channels // 4,
        "out_channels": (config.get("out_channels") or channels) // 4,
        "vec_in_dim": row.pooled_width(config),
        "context_in_dim": row.context_width(config),
        "hidden_size": heads * head,
        "mlp_ratio": 4.0,
        "num_heads": heads,
        "depth": config.get("num_layers", 19),
        "depth_single_blocks": config.get("num_single_layers", 38),
        "axes_dim": axes,
        "theta": 10000,
        "patch_size": 2,
        "qkv_bias": True,
        "guidance_embed": config.get("guidance_embeds", False),
        "txt_ids_dims": [],
    }
    return {"image_model": "flux", **only_known(unet_config, FluxParams)}


def blocks(config: dict[str, Any], what: str) -> tuple[int, int, list[int], int]:
    """Number of heads, their width, its division among the axes, and channels of a token: of Flux's kin."""
    heads, head = config.get("num_attention_heads", 24), config.get("attention_head_dim", 128)
    axes = list(config.get("axes_dims_rope", (16, 56, 56)))
    if sum(axes) != head:
        raise ValueError(f"this {what} has axes_dims_rope {axes} and ComfyUI's divides the width of a head, {head}")
    return heads, head, axes, config.get("in_channels", 64)


def host_names(state: dict[str, Tensor], unet_config: dict[str, Any]) -> dict[str, Tensor]:
    return renamed(state, comfy.utils.flux_to_diffusers(unet_config))


FLUX = HostModel(
    network=Flux,
    told_by="vector_in.in_layer.weight",
    context_weight="txt_in.weight",
    pooled_weight="vector_in.in_layer.weight",
    describe=describe,
    rename=host_names,
)
