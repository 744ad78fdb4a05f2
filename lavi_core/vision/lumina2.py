"""Lumina-Image 2.0 (arXiv 2503.21758): one stream of text and picture, time from noise to data, grouped heads."""

from __future__ import annotations

from torch import Tensor, nn

from ..conditioning import Conditioning
from .call import NUM_TIMESTEPS, Told, real
from .keys import Fused, host_keys
from .target import VisionTarget
from .text import TextRule


def predict(network: nn.Module, x: Tensor, timesteps: Tensor, heard: Conditioning, told: Told) -> Tensor:
    """The network takes the data's share as its time and gives data - noise; it drops masked tokens from the end."""
    return -network(
        hidden_states=x,
        timestep=1 - timesteps / NUM_TIMESTEPS,
        encoder_hidden_states=heard.context,
        encoder_attention_mask=real(heard),
    ).sample


LUMINA2 = VisionTarget(
    name="lumina2",
    diffusers_class="Lumina2Transformer2DModel",
    predict=predict,
    lora_sites=(
        r"(layers|noise_refiner|context_refiner)\.\d+\."
        r"(attn\.(to_q|to_k|to_v|to_out\.0)|feed_forward\.linear_[123])"
    ),
    keys=host_keys(
        (r"\.attn\.to_out\.0$", ".attention.out"),
        (r"\.feed_forward\.linear_(\d)$", r".feed_forward.w\1"),
        fused=Fused(path=r"(.+)\.attn\.to_(?P<part>[qkv])", into=r"\1.attention.qkv", parts=("q", "k", "v")),
    ),
    text=TextRule(masked="left_out", longest=299),  # positions for 300, of which the picture takes the one behind
    width_key="cap_feat_dim",
    latent_scale=0.3611,
    latent_shift=0.1159,
    patch=2,
)
