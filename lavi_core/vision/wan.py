"""Wan 2.1 (arXiv 2503.20314), text to video, for a single frame: cross-attention to 512 tokens."""

from __future__ import annotations

from torch import Tensor, nn

from ..conditioning import Conditioning
from .call import Told
from .keys import host_keys
from .target import VisionTarget
from .text import TextRule

# Of the 16 channels of Wan 2.1's VAE, which Qwen-Image, Cosmos-Predict2 and Anima share.
LATENT_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
LATENT_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)
LATENT_SCALE = tuple(1 / std for std in LATENT_STD)


def predict(network: nn.Module, x: Tensor, timesteps: Tensor, heard: Conditioning, told: Told) -> Tensor:
    return network(
        hidden_states=x.unsqueeze(2),
        timestep=timesteps,
        encoder_hidden_states=heard.context,
    ).sample.squeeze(2)


WAN = VisionTarget(
    name="wan",
    diffusers_class="WanTransformer3DModel",
    predict=predict,
    lora_sites=r"blocks\.\d+\.(attn[12]\.(to_q|to_k|to_v|to_out\.0)|ffn\.net\.(0\.proj|2))",
    blocks="blocks",
    keys=host_keys(
        (r"\.attn1\.", ".self_attn."),
        (r"\.attn2\.", ".cross_attn."),
        (r"\.to_out\.0$", ".o"),
        (r"\.to_([qkv])$", r".\1"),
        (r"\.ffn\.net\.0\.proj$", ".ffn.0"),
        (r"\.ffn\.net\.2$", ".ffn.2"),
    ),
    text=TextRule(masked="zeroed", length=512),
    width_key="text_dim",
    latent_scale=LATENT_SCALE,
    latent_shift=LATENT_MEAN,
    patch=2,
    size=640,
)
