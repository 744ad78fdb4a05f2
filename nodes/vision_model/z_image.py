"""A diffusers ``ZImageTransformer2DModel`` as the host's NextDiT, whatever its size."""

from __future__ import annotations

from typing import Any

import comfy.model_base
import comfy.ops
import comfy.utils
from comfy.ldm.lumina.model import NextDiT, TimestepEmbedder
from comfy.supported_models_base import BASE
from torch import Tensor

from .folder import demand
from .host_model import HostModel
from .next_dit import shaped
from .renaming import renamed
from .stock import described

# What the host's NextDiT has no knob for, as Z-Image's.
DEMANDS: dict[str, Any] = {"all_patch_size": [2], "all_f_patch_size": [1], "siglip_feat_dim": None}
TIME, TIME_INNER = 256, 1024  # widths of the embedding of time; narrower where the network is


def describe(config: dict[str, Any], scheduler: dict[str, Any], row: Any, space: Any) -> BASE:
    return described("ZImage", shape(config, row), scheduler, row, space, config.get("in_channels", 16))


def shape(config: dict[str, Any], row: Any) -> dict[str, Any]:
    """The host's ``unet_config`` from diffusers' ``config.json``; refuses what the host's NextDiT cannot be."""
    demand(config, DEMANDS, "Z-Image transformer")
    width = config.get("dim", 3840)
    unet_config = {
        "patch_size": 2,
        "in_channels": config.get("in_channels", 16),
        "dim": width,
        "n_layers": config.get("n_layers", 30),
        "n_refiner_layers": config.get("n_refiner_layers", 2),
        "n_heads": config.get("n_heads", 30),
        "n_kv_heads": config.get("n_kv_heads", 30),
        "norm_eps": config.get("norm_eps", 1e-5),
        "qk_norm": config.get("qk_norm", True),
        "cap_feat_dim": row.context_width(config),
        "axes_dims": list(config.get("axes_dims", (32, 48, 48))),
        "axes_lens": list(config.get("axes_lens", (1024, 512, 512))),
        "rope_theta": config.get("rope_theta", 256.0),
        "z_image_modulation": True,
        "time_scale": config.get("t_scale", 1000.0),
        "pad_tokens_multiple": 32,
    }
    return shaped(unet_config, int(width / 3 * 8))


def host_names(state: dict[str, Tensor], unet_config: dict[str, Any]) -> dict[str, Tensor]:
    return renamed(state, comfy.utils.z_image_to_diffusers(unet_config))


def fit_time(model: comfy.model_base.BaseModel) -> None:
    """The host narrows the inside of the embedding of time with the network, and diffusers what comes out of it."""
    width = model.diffusion_model.dim
    if width < TIME_INNER:
        dtype = model.model_config.unet_config["dtype"]
        operations = comfy.ops.pick_operations(dtype, model.manual_cast_dtype)
        model.diffusion_model.t_embedder = (
            TimestepEmbedder(TIME_INNER, output_size=min(width, TIME), dtype=dtype, operations=operations)
            .eval()
            .requires_grad_(False)
        )


Z_IMAGE = HostModel(
    network=NextDiT,
    told_by="layers.0.adaLN_modulation.0.weight",
    context_weight="cap_embedder.1.weight",
    needs=("ZImage",),
    describe=describe,
    rename=host_names,
    adjust=fit_time,
)
