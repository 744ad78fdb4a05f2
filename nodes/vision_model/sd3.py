"""A diffusers ``SD3Transformer2DModel`` as the host's MMDiT, whatever its size.

The host's own detection takes as many blocks as there are heads.
"""

from __future__ import annotations

from typing import Any

import comfy.utils
from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
from comfy.supported_models_base import BASE
from torch import Tensor

from .folder import demand
from .host_model import HostModel
from .renaming import renamed
from .stock import described

DEMANDS: dict[str, Any] = {"attention_head_dim": 64}
NORMS = {None: None, "rms_norm": "rms"}


def describe(config: dict[str, Any], scheduler: dict[str, Any], row: Any, space: Any) -> BASE:
    return described("SD3", shape(config, row), scheduler, row, space, config.get("in_channels", 16))


def shape(config: dict[str, Any], row: Any) -> dict[str, Any]:
    """The host's ``unet_config`` from diffusers' ``config.json``; refuses what the host's MMDiT cannot be."""
    demand(config, DEMANDS, "SD3 transformer")
    heads, channels = config.get("num_attention_heads", 18), config.get("in_channels", 16)
    demand(config, {"caption_projection_dim": 64 * heads}, "SD3 transformer")
    norm, side = config.get("qk_norm"), config.get("pos_embed_max_size", 96)
    if norm not in NORMS:
        raise ValueError(
            f"this SD3 transformer has qk_norm = {norm!r} and ComfyUI's knows {', '.join(map(repr, NORMS))}"
        )
    return {
        "in_channels": channels,
        "out_channels": config.get("out_channels") or channels,
        "patch_size": config.get("patch_size", 2),
        "depth": heads,  # the host's word for the width in heads
        "num_blocks": config.get("num_layers", 18),
        "input_size": None,
        "adm_in_channels": row.pooled_width(config),
        "context_embedder_config": {
            "target": "torch.nn.Linear",
            "params": {"in_features": row.context_width(config), "out_features": 64 * heads},
        },
        "num_patches": side**2,
        "pos_embed_max_size": side,
        "pos_embed_scaling_factor": None,
        "qk_norm": NORMS[norm],
        "x_block_self_attn_layers": list(config.get("dual_attention_layers", ())),
    }


def host_names(state: dict[str, Tensor], unet_config: dict[str, Any]) -> dict[str, Tensor]:
    known = comfy.utils.mmdit_to_diffusers(unet_config)
    last = unet_config["num_blocks"] - 1
    for i in range(last + 1):  # the last block's halves are swapped; the map takes it to be block ``depth - 1``
        for end in ("weight", "bias"):
            place = f"joint_blocks.{i}.context_block.adaLN_modulation.1.{end}"
            swapped = (place, None, comfy.utils.swap_scale_shift)
            known[f"transformer_blocks.{i}.norm1_context.linear.{end}"] = swapped if i == last else place
    return renamed(state, known)


SD3 = HostModel(
    network=OpenAISignatureMMDITWrapper,
    context_weight="context_embedder.weight",
    pooled_weight="y_embedder.mlp.0.weight",
    describe=describe,
    rename=host_names,
)
