"""A diffusers ``WanTransformer3DModel`` (2.1, text to video) as the host's WanModel, whatever its size.

The stock loader does not take such a folder.
"""

from __future__ import annotations

from typing import Any

from comfy.ldm.wan.model import WanModel
from comfy.supported_models_base import BASE
from torch import Tensor

from .folder import demand
from .host_model import HostModel
from .renaming import places, renamed
from .stock import described

# What the host's WanModel has no knob for, and what tells this from Wan's other models.
DEMANDS: dict[str, Any] = {
    "patch_size": [1, 2, 2],
    "in_channels": 16,
    "out_channels": 16,
    "qk_norm": "rms_norm_across_heads",
    "image_dim": None,
    "added_kv_proj_dim": None,
    "pos_embed_seq_len": None,
}


def describe(config: dict[str, Any], scheduler: dict[str, Any], row: Any, space: Any) -> BASE:
    return described("WAN21_T2V", shape(config, row), scheduler, row, space)


def shape(config: dict[str, Any], row: Any) -> dict[str, Any]:
    """The host's ``unet_config`` from diffusers' ``config.json``; refuses what the host's network cannot be."""
    demand(config, DEMANDS, "Wan transformer")
    heads = config.get("num_attention_heads", 40)
    return {
        "image_model": "wan2.1",
        "model_type": "t2v",
        "patch_size": (1, 2, 2),
        "in_dim": 16,
        "out_dim": 16,
        "dim": heads * config.get("attention_head_dim", 128),
        "ffn_dim": config.get("ffn_dim", 13824),
        "freq_dim": config.get("freq_dim", 256),
        "text_dim": row.context_width(config),
        "num_heads": heads,
        "num_layers": config.get("num_layers", 40),
        "qk_norm": True,
        "cross_attn_norm": config.get("cross_attn_norm", True),
        "eps": config.get("eps", 1e-6),
    }


RULES = (
    (r"\.norm2\.", ".norm3."),  # the one before cross-attention
    (r"^(blocks\.\d+)\.scale_shift_table$", r"\1.modulation"),
    (r"^scale_shift_table$", "head.modulation"),
    (r"^proj_out\.", "head.head."),
    (r"^condition_embedder\.time_embedder\.linear_1\.", "time_embedding.0."),
    (r"^condition_embedder\.time_embedder\.linear_2\.", "time_embedding.2."),
    (r"^condition_embedder\.time_proj\.", "time_projection.1."),
    (r"^condition_embedder\.text_embedder\.linear_1\.", "text_embedding.0."),
    (r"^condition_embedder\.text_embedder\.linear_2\.", "text_embedding.2."),
)


def host_names(state: dict[str, Tensor], unet_config: dict[str, Any]) -> dict[str, Tensor]:
    from ...lavi_core.vision.wan import WAN as ROW

    return renamed(state, places(state, ROW.keys, RULES))


WAN = HostModel(
    network=WanModel,
    context_weight="text_embedding.0.weight",
    describe=describe,
    rename=host_names,
)
