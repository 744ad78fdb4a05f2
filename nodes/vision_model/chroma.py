"""A diffusers ``ChromaTransformer2DModel`` as the host's Chroma, whatever its size.

The stock loader takes such a folder for Flux schnell, and the host's network is made for 19 and 38 blocks.
"""

from __future__ import annotations

from typing import Any

import comfy.model_base
import comfy.utils
from comfy.ldm.chroma.model import Chroma, ChromaParams
from comfy.supported_models_base import BASE
from torch import Tensor

from .flux import blocks
from .folder import demand
from .host_model import HostModel
from .renaming import renamed
from .stock import described, only_known

# What the host's Chroma has no knob for; the embeddings of time, guidance and place of a modulation are 16, 16 and 32.
DEMANDS: dict[str, Any] = {"patch_size": 1, "approximator_num_channels": 64}
MODULATIONS = 344  # that the host's network makes, of which the last two are its final layer's


class ShortChroma(Chroma):
    """The final layer's modulations follow those of the blocks that are there."""

    def get_modulations(self, tensor: Tensor, block_type: str, *, idx: int = 0) -> Any:
        """tensor [B 344 width]"""
        used = modulations(self.params.depth, self.params.depth_single_blocks)
        return super().get_modulations(tensor[:, :used], block_type, idx=idx)


def describe(config: dict[str, Any], scheduler: dict[str, Any], row: Any, space: Any) -> BASE:
    unet_config = shape(config, row)
    return described("Chroma", unet_config, scheduler, row, space, unet_config["in_channels"] // 4, by_mu=True)


def shape(config: dict[str, Any], row: Any) -> dict[str, Any]:
    """The host's ``unet_config`` from diffusers' ``config.json``; refuses what the host's Chroma cannot be."""
    demand(config, DEMANDS, "Chroma transformer")
    heads, head, axes, channels = blocks(config, "Chroma transformer")
    depth, singles = config.get("num_layers", 19), config.get("num_single_layers", 38)
    if modulations(depth, singles) > MODULATIONS:
        raise ValueError(f"this Chroma transformer has {depth} and {singles} blocks and ComfyUI's at most 19 and 38")
    unet_config = {
        "in_channels": channels,
        "out_channels": config.get("out_channels") or channels,
        "vec_in_dim": None,
        "context_in_dim": row.context_width(config),
        "hidden_size": heads * head,
        "mlp_ratio": 4.0,
        "num_heads": heads,
        "depth": depth,
        "depth_single_blocks": singles,
        "axes_dim": axes,
        "theta": 10000,
        "patch_size": 2,
        "qkv_bias": True,
        "in_dim": 64,
        "out_dim": heads * head,
        "hidden_dim": config.get("approximator_hidden_dim", 5120),
        "n_layers": config.get("approximator_layers", 5),
        "txt_ids_dims": [],
    }
    return {"image_model": "chroma", **only_known(unet_config, ChromaParams)}


def modulations(depth: int, singles: int) -> int:
    """Vectors that the distilled guidance layer makes: shift, scale and gate of each single block, twice and for text
    and picture of each double block; shift and scale of the final layer."""
    return 3 * singles + 12 * depth + 2


def host_names(state: dict[str, Tensor], unet_config: dict[str, Any]) -> dict[str, Tensor]:
    known = comfy.utils.flux_to_diffusers(unet_config)
    norm = known["transformer_blocks.0.attn.norm_q.weight"].rpartition(".")[2]  # "scale" in older hosts
    rules = (
        (r"^(distilled_guidance_layer\.layers\.\d+)\.linear_1\.", r"\1.in_layer."),
        (r"^(distilled_guidance_layer\.layers\.\d+)\.linear_2\.", r"\1.out_layer."),
        (r"^(distilled_guidance_layer\.norms\.\d+)\.weight$", rf"\1.{norm}"),
    )
    return renamed(state, known, rules)


def shorten(model: comfy.model_base.BaseModel) -> None:
    params = model.diffusion_model.params
    if modulations(params.depth, params.depth_single_blocks) < MODULATIONS:
        model.diffusion_model.__class__ = ShortChroma


CHROMA = HostModel(
    network=Chroma,
    told_by="img_in.weight",  # which ChromaRadiance, a class below it that draws in pixels, has not
    context_weight="txt_in.weight",
    describe=describe,
    rename=host_names,
    adjust=shorten,
)
