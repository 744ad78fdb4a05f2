"""A diffusers ``Flux2Transformer2DModel`` (klein) as the host's Flux with one modulation for all blocks.

The stock loader does not take such a folder (KeyError).
"""

from __future__ import annotations

from typing import Any

import comfy.utils
from comfy.ldm.flux.model import Flux
from comfy.supported_models_base import BASE
from torch import Tensor

from .flux import blocks
from .folder import demand
from .host_model import HostModel
from .renaming import renamed
from .stock import described

DEMANDS: dict[str, Any] = {"patch_size": 1, "timestep_guidance_channels": 256, "eps": 1e-6}


def describe(config: dict[str, Any], scheduler: dict[str, Any], row: Any, space: Any) -> BASE:
    unet_config = shape(config, row)
    return described("Flux2", unet_config, scheduler, row, space, unet_config["in_channels"], by_mu=True)


def shape(config: dict[str, Any], row: Any) -> dict[str, Any]:
    """The host's ``unet_config`` from diffusers' ``config.json``; refuses what the host's Flux cannot be."""
    demand(config, DEMANDS, "Flux.2 transformer")
    heads, head, axes, channels = blocks(
        {"num_attention_heads": 48, "axes_dims_rope": (32, 32, 32, 32), "in_channels": 128, **config},
        "Flux.2 transformer",
    )
    return {
        "image_model": "flux2",
        "in_channels": channels,
        "out_channels": config.get("out_channels") or channels,
        "vec_in_dim": None,
        "context_in_dim": row.context_width(config),
        "hidden_size": heads * head,
        "mlp_ratio": config.get("mlp_ratio", 3.0),
        "num_heads": heads,
        "depth": config.get("num_layers", 8),
        "depth_single_blocks": config.get("num_single_layers", 48),
        "axes_dim": axes,
        "theta": config.get("rope_theta", 2000),
        "patch_size": 1,
        "qkv_bias": False,
        "ops_bias": False,
        "guidance_embed": config.get("guidance_embeds", True),
        "global_modulation": True,
        "mlp_silu_act": True,
        "txt_ids_dims": [3],  # positions of text are counted
        "default_ref_method": "index",
        "ref_index_scale": 10.0,
    }


RULES = (
    (r"^time_guidance_embed\.timestep_embedder\.linear_1\.", "time_in.in_layer."),
    (r"^time_guidance_embed\.timestep_embedder\.linear_2\.", "time_in.out_layer."),
    (r"^time_guidance_embed\.guidance_embedder\.linear_1\.", "guidance_in.in_layer."),
    (r"^time_guidance_embed\.guidance_embedder\.linear_2\.", "guidance_in.out_layer."),
    (r"^(double_stream_modulation_img|double_stream_modulation_txt|single_stream_modulation)\.linear\.", r"\1.lin."),
    # what older hosts' map lacks
    (r"^transformer_blocks\.(\d+)\.ff\.linear_in\.", r"double_blocks.\1.img_mlp.0."),
    (r"^transformer_blocks\.(\d+)\.ff\.linear_out\.", r"double_blocks.\1.img_mlp.2."),
    (r"^transformer_blocks\.(\d+)\.ff_context\.linear_in\.", r"double_blocks.\1.txt_mlp.0."),
    (r"^transformer_blocks\.(\d+)\.ff_context\.linear_out\.", r"double_blocks.\1.txt_mlp.2."),
    (r"^single_transformer_blocks\.(\d+)\.attn\.to_qkv_mlp_proj\.", r"single_blocks.\1.linear1."),
    (r"^single_transformer_blocks\.(\d+)\.attn\.to_out\.", r"single_blocks.\1.linear2."),
)


def host_names(state: dict[str, Tensor], unet_config: dict[str, Any]) -> dict[str, Tensor]:
    return renamed(state, comfy.utils.flux_to_diffusers(unet_config), RULES)


FLUX2 = HostModel(
    network=Flux,
    told_by="double_stream_modulation_img.lin.weight",
    context_weight="txt_in.weight",
    needs=("Flux2",),
    describe=describe,
    rename=host_names,
    rules=RULES,
)
