"""PixArt-alpha: a DiT with cross-attention; the checkpoint of the paper is PixArt-XL-2-512x512."""

from __future__ import annotations

from .added_conditions import micro_conditions
from .keys import TRANSFORMER
from .target import VisionTarget

# The authors name GEGLU too, but PixArt's feed-forward is a plain GELU: attention alone is adapted, 224 sites.
PIXART = VisionTarget(
    name="pixart",
    diffusers_class="PixArtTransformer2DModel",
    lora_sites=r"transformer_blocks\.\d+\.attn[12]\.(to_q|to_k|to_v|to_out\.0)",
    keys=TRANSFORMER,
    formerly={"_class_name": "Transformer2DModel", "norm_type": "ada_norm_single"},  # the released folder's
    width_key="caption_channels",
    added=micro_conditions,
    latent_scale=0.18215,
    sets_latent_scale=True,  # ComfyUI takes the checkpoint of 512 pixels for PixArt-Sigma, with SDXL's latents
)
