"""A diffusers ``CosmosTransformer3DModel`` as the host's MiniTrainDIT: Cosmos-Predict2, and Anima without its adapter.

The stock loader does not take such a folder.
"""

from __future__ import annotations

from typing import Any

import comfy.model_base
import comfy.supported_models
from comfy.ldm.cosmos.predict2 import MiniTrainDIT
from comfy.supported_models_base import BASE
from torch import Tensor

from .folder import demand
from .host_model import HostModel
from .renaming import places, renamed
from .stock import described, shifted

# What the host's class has no knob for, as the model of pictures.
DEMANDS: dict[str, Any] = {
    "patch_size": [1, 2, 2],
    "concat_padding_mask": True,
    "extra_pos_embed_type": None,
    "use_crossattn_projection": False,
    "img_context_dim_in": None,
}


class PlainFlow(comfy.supported_models.CosmosT2IPredict2):
    """Anima's sampling, for hosts that lack the class and without the adapter that the class has."""

    sampling_settings = {"multiplier": 1.0, "shift": 3.0}  # noqa: RUF012 (the host's own form)

    def get_model(self, state_dict: dict[str, Any], prefix: str = "", device: Any = None) -> comfy.model_base.BaseModel:
        return PlainFlowModel(self, comfy.model_base.ModelType.FLOW, device=device)


class PlainFlowModel(comfy.model_base.CosmosPredict2):
    scale_latent_inpaint = comfy.model_base.BaseModel.scale_latent_inpaint


def describe(config: dict[str, Any], scheduler: dict[str, Any], row: Any, space: Any) -> BASE:
    """Cosmos goes through ratios of noise to data, Karras' way, Anima through shares."""
    unet_config, channels = shape(config, row), config.get("in_channels", 16)
    if not scheduler.get("use_karras_sigmas"):
        return shifted(PlainFlow(unet_config), scheduler, row, space, channels)
    found = described("CosmosT2IPredict2", unet_config, scheduler, row, space, channels)
    for key in ("sigma_min", "sigma_max"):
        if scheduler.get(key):
            found.sampling_settings[key] = scheduler[key]
    return found


def shape(config: dict[str, Any], row: Any) -> dict[str, Any]:
    """The host's ``unet_config`` from diffusers' ``config.json``; refuses what the host's network cannot be."""
    demand(config, DEMANDS, "Cosmos transformer")
    heads, (frames, high, wide) = config.get("num_attention_heads", 32), config.get("max_size", (128, 240, 240))
    scale_t, scale_h, scale_w = config.get("rope_scale", (2.0, 1.0, 1.0))
    return {
        "image_model": "cosmos_predict2",
        "max_img_h": high,
        "max_img_w": wide,
        "max_frames": frames,
        "in_channels": config.get("in_channels", 16),
        "out_channels": config.get("out_channels", 16),
        "patch_spatial": 2,
        "patch_temporal": 1,
        "concat_padding_mask": True,
        "model_channels": heads * config.get("attention_head_dim", 128),
        "num_blocks": config.get("num_layers", 28),
        "num_heads": heads,
        "mlp_ratio": config.get("mlp_ratio", 4.0),
        "crossattn_emb_channels": row.context_width(config),
        "pos_emb_cls": "rope3d",
        "pos_emb_learnable": True,
        "pos_emb_interpolation": "crop",
        "use_adaln_lora": True,
        "adaln_lora_dim": config.get("adaln_lora_dim", 256),
        "rope_t_extrapolation_ratio": scale_t,
        "rope_h_extrapolation_ratio": scale_h,
        "rope_w_extrapolation_ratio": scale_w,
        "extra_per_block_abs_pos_emb": False,
        "rope_enable_fps_modulation": False,
    }


RULES = (
    (r"\.norm_([qk])\.", r".\1_norm."),
    (r"\.norm1\.linear_", ".adaln_modulation_self_attn."),
    (r"\.norm2\.linear_", ".adaln_modulation_cross_attn."),
    (r"\.norm3\.linear_", ".adaln_modulation_mlp."),
    (r"^time_embed\.t_embedder\.", "t_embedder.1."),
    (r"^time_embed\.norm\.", "t_embedding_norm."),
    (r"^patch_embed\.proj\.", "x_embedder.proj.1."),
    (r"^norm_out\.linear_", "final_layer.adaln_modulation."),
    (r"^proj_out\.", "final_layer.linear."),
)


def host_names(state: dict[str, Tensor], unet_config: dict[str, Any]) -> dict[str, Tensor]:
    from ...lavi_core.vision.cosmos import COSMOS as ROW

    return renamed(state, places(state, ROW.keys, RULES))


COSMOS = HostModel(
    network=MiniTrainDIT,
    context_weight="diffusion_model.blocks.0.cross_attn.k_proj.weight",  # Anima's adapter has one that ends alike
    describe=describe,
    rename=host_names,
)
