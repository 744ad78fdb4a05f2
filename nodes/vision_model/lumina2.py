"""A diffusers ``Lumina2Transformer2DModel`` as the host's NextDiT, whatever its size.

The stock loader takes such a folder for another model, and knows two widths.
"""

from __future__ import annotations

from typing import Any

import comfy.model_base
from comfy.ldm.lumina.model import NextDiT
from comfy.supported_models_base import BASE
from torch import Tensor

from .folder import demand
from .host_model import HostModel
from .next_dit import shaped
from .renaming import places, renamed
from .stock import described

DEMANDS: dict[str, Any] = {"scaling_factor": 1.0}


def describe(config: dict[str, Any], scheduler: dict[str, Any], row: Any, space: Any) -> BASE:
    return described("Lumina2", shape(config, row), scheduler, row, space, config.get("in_channels", 16))


def shape(config: dict[str, Any], row: Any) -> dict[str, Any]:
    """The host's ``unet_config`` from diffusers' ``config.json``; refuses what the host's NextDiT cannot be."""
    channels = config.get("in_channels", 16)
    demand(config, DEMANDS, "Lumina 2 transformer")
    if config.get("out_channels") is not None:
        demand(config, {"out_channels": channels}, "Lumina 2 transformer")
    width, multiple = config.get("hidden_size", 2304), config.get("multiple_of", 256)
    inner = 4 * width
    if config.get("ffn_dim_multiplier") is not None:
        inner = int(config["ffn_dim_multiplier"] * inner)
    unet_config = {
        "patch_size": config.get("patch_size", 2),
        "in_channels": channels,
        "dim": width,
        "n_layers": config.get("num_layers", 26),
        "n_refiner_layers": config.get("num_refiner_layers", 2),
        "n_heads": config.get("num_attention_heads", 24),
        "n_kv_heads": config.get("num_kv_heads", 8),
        "norm_eps": config.get("norm_eps", 1e-5),
        "qk_norm": True,
        "cap_feat_dim": row.context_width(config),
        "axes_dims": list(config.get("axes_dim_rope", (32, 32, 32))),
        "axes_lens": list(config.get("axes_lens", (300, 512, 512))),
        "rope_theta": 10000.0,
    }
    return shaped(unet_config, multiple * -(-inner // multiple))


RULES = (
    (r"\.attn\.norm_([qk])\.", r".attention.\1_norm."),
    (r"\.norm1\.linear\.", ".adaLN_modulation.1."),
    (r"\.norm1\.norm\.", ".attention_norm1."),
    (r"\.norm([12])\.weight$", r".attention_norm\1.weight"),
    (r"^norm_out\.linear_1\.", "final_layer.adaLN_modulation.1."),
    (r"^norm_out\.linear_2\.", "final_layer.linear."),
    (r"^time_caption_embed\.caption_embedder\.", "cap_embedder."),
    (r"^time_caption_embed\.timestep_embedder\.linear_1\.", "t_embedder.mlp.0."),
    (r"^time_caption_embed\.timestep_embedder\.linear_2\.", "t_embedder.mlp.2."),
)


def host_names(state: dict[str, Tensor], unet_config: dict[str, Any]) -> dict[str, Tensor]:
    from ...lavi_core.vision.lumina2 import LUMINA2 as ROW

    return renamed(state, places(state, ROW.keys, RULES))


def drop_unused(model: comfy.model_base.BaseModel) -> None:
    """Older hosts have a norm that nothing goes through, as the authors' code had, and diffusers' files lack."""
    if hasattr(model.diffusion_model, "norm_final"):
        del model.diffusion_model.norm_final


LUMINA2 = HostModel(
    network=NextDiT,
    told_by="layers.0.adaLN_modulation.1.weight",
    context_weight="cap_embedder.1.weight",
    describe=describe,
    rename=host_names,
    adjust=drop_unused,
    counts_by_mask=True,
)
