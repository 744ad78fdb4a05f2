"""Qwen-Image (arXiv 2508.02324): joint attention over packed latents of a video VAE, the text masked."""

from __future__ import annotations

from torch import Tensor, nn

from ..conditioning import Conditioning
from .call import NUM_TIMESTEPS, Told, pack, unpack
from .keys import DIFFUSERS
from .target import VisionTarget
from .text import TextRule
from .wan import LATENT_MEAN, LATENT_SCALE


def predict(network: nn.Module, x: Tensor, timesteps: Tensor, heard: Conditioning, told: Told) -> Tensor:
    h, w = x.shape[-2:]
    predicted = network(
        hidden_states=pack(x),
        timestep=timesteps / NUM_TIMESTEPS,
        encoder_hidden_states=heard.context,
        encoder_hidden_states_mask=heard.mask,
        img_shapes=[[(1, h // 2, w // 2)]] * len(x),
    ).sample
    return unpack(predicted, h, w)


QWEN_IMAGE = VisionTarget(
    name="qwen_image",
    diffusers_class="QwenImageTransformer2DModel",
    predict=predict,
    lora_sites=(
        r"transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
        r"|(img|txt)_mlp\.net\.(0\.proj|2))"
    ),
    idle_sites=r"transformer_blocks\.{last}\.(attn\.(add_q_proj|to_add_out)|txt_mlp\.net\.(0\.proj|2))",
    keys=DIFFUSERS,
    text=TextRule(masked="left_out", longest=4095),
    width_key="joint_attention_dim",
    latent_scale=LATENT_SCALE,
    latent_shift=LATENT_MEAN,
    patch=2,
    even=True,
    packing=4,
    noise_levels=10_000,
)
