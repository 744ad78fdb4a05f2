"""Sana (arXiv 2410.10629): linear attention on latents of 32 pixels, cross-attention with a mask.

ComfyUI has no class for it: it is trained and drawn with here alone.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..conditioning import Conditioning
from .call import Told
from .keys import DIFFUSERS
from .target import VisionTarget


def predict(network: nn.Module, x: Tensor, timesteps: Tensor, heard: Conditioning, told: Told) -> Tensor:
    return network(
        hidden_states=x,
        timestep=timesteps * told.config["timestep_scale"],
        encoder_hidden_states=heard.context,
        encoder_attention_mask=heard.mask,
    ).sample


# The feed-forward is of convolutions, one of them depthwise: attention alone is adapted, as in PixArt.
SANA = VisionTarget(
    name="sana",
    diffusers_class="SanaTransformer2DModel",
    predict=predict,
    lora_sites=r"transformer_blocks\.\d+\.attn[12]\.(to_q|to_k|to_v|to_out\.0)",
    keys=DIFFUSERS,
    told_by={"guidance_embeds": False},  # Sana Sprint, which embeds it, is no flow
    width_key="caption_channels",
    latent_scale=0.41407,
    pixels=32,
)
