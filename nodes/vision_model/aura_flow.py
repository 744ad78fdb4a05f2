"""A diffusers ``AuraFlowTransformer2DModel`` as the host's MMDiT of AuraFlow, whatever its size.

The host's own detection knows one width of text.
"""

from __future__ import annotations

from typing import Any

import comfy.utils
from comfy.ldm.aura.mmdit import MMDiT
from comfy.supported_models_base import BASE
from torch import Tensor

from .folder import demand
from .host_model import HostModel
from .renaming import renamed
from .stock import described


def describe(config: dict[str, Any], scheduler: dict[str, Any], row: Any, space: Any) -> BASE:
    return described("AuraFlow", shape(config, row), scheduler, row, space, config.get("in_channels", 4))


def shape(config: dict[str, Any], row: Any) -> dict[str, Any]:
    """The host's ``unet_config`` from diffusers' ``config.json``; refuses what the host's MMDiT cannot be."""
    heads = config.get("num_attention_heads", 12)
    width, double = heads * config.get("attention_head_dim", 256), config.get("num_mmdit_layers", 4)
    demand(config, {"caption_projection_dim": width}, "AuraFlow transformer")
    return {
        "in_channels": config.get("in_channels", 4),
        "out_channels": config.get("out_channels", 4),
        "patch_size": config.get("patch_size", 2),
        "dim": width,
        "n_layers": double + config.get("num_single_dit_layers", 32),
        "n_double_layers": double,
        "n_heads": heads,
        "global_conddim": width,
        "cond_seq_dim": row.context_width(config),
        "max_seq": config.get("pos_embed_max_size", 1024),
    }


def host_names(state: dict[str, Tensor], unet_config: dict[str, Any]) -> dict[str, Tensor]:
    return renamed(state, comfy.utils.auraflow_to_diffusers(unet_config))


AURA_FLOW = HostModel(
    network=MMDiT,
    context_weight="cond_seq_linear.weight",
    describe=describe,
    rename=host_names,
)
