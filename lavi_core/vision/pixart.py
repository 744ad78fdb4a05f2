"""PixArt: a DiT with cross-attention; alpha's checkpoint of the paper is PixArt-XL-2-512x512."""

from __future__ import annotations

from .added_conditions import micro_conditions, plainly
from .keys import TRANSFORMER
from .target import VisionTarget

# The authors name GEGLU too, but PixArt's feed-forward is a plain GELU: attention alone is adapted, 224 sites.
SITES = r"transformer_blocks\.\d+\.attn[12]\.(to_q|to_k|to_v|to_out\.0)"
FORMERLY = {"_class_name": "Transformer2DModel", "norm_type": "ada_norm_single"}  # the released folders'

PIXART = VisionTarget(
    name="pixart",
    diffusers_class="PixArtTransformer2DModel",
    predict=plainly(micro_conditions),
    lora_sites=SITES,
    keys=TRANSFORMER,
    formerly=FORMERLY,
    width_key="caption_channels",
    latent_scale=0.18215,
    sets_latent_scale=True,  # ComfyUI takes the checkpoint of 512 pixels for PixArt-Sigma, with SDXL's latents
    patch=2,
)

# arXiv 2403.04692: SDXL's latents, no micro-conditions at any size, and 300 tokens of text.
PIXART_SIGMA = VisionTarget(
    name="pixart_sigma",
    diffusers_class="PixArtTransformer2DModel",
    predict=plainly(micro_conditions),
    lora_sites=SITES,
    keys=TRANSFORMER,
    told_by={"use_additional_conditions": False},
    formerly=FORMERLY,
    width_key="caption_channels",
    latent_scale=0.13025,
    sets_latent_scale=True,
    patch=2,
)
