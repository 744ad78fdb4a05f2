"""Flux.2 klein: joint and single blocks over latents of 16 pixels, 512 tokens whose positions count."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..conditioning import Conditioning
from .call import NUM_TIMESTEPS, Told, grid_ids
from .keys import DIFFUSERS
from .target import VisionTarget
from .text import TextRule

STEPS = 50  # the pipeline's shift depends on the number of steps too; with 50 it is ComfyUI's at 1024 pixels, e^2.02


def shift(tokens: int) -> float:
    """e^mu, mu as diffusers' Flux2KleinPipeline counts it (``compute_empirical_mu``) for 50 steps."""
    most = 0.00016927 * tokens + 0.45666666  # for 200 steps
    if tokens > 4300:
        return math.exp(most)
    few = 8.73809524e-05 * tokens + 1.89833333  # for 10 steps
    return math.exp(most + (STEPS - 200) * (most - few) / 190)


def predict(network: nn.Module, x: Tensor, timesteps: Tensor, heard: Conditioning, told: Told) -> Tensor:
    h, w = x.shape[-2:]
    tokens = heard.context.shape[1]
    embeds = told.config["guidance_embeds"]
    picture, text = torch.zeros(h * w, 4, device=x.device), torch.zeros(tokens, 4, device=x.device)  # beyond bf16's 256
    picture[:, :3] = grid_ids(h, w, x.device)
    text[:, 3] = torch.arange(tokens, device=x.device)
    predicted = network(
        hidden_states=x.flatten(2).transpose(1, 2),
        timestep=timesteps / NUM_TIMESTEPS,
        guidance=timesteps.new_full(timesteps.shape, told.guidance) if embeds else None,
        encoder_hidden_states=heard.context,
        txt_ids=text.expand(len(x), -1, -1),
        img_ids=picture.expand(len(x), -1, -1),
    ).sample
    return predicted.transpose(1, 2).unflatten(2, (h, w))


FLUX2 = VisionTarget(
    name="flux2",
    diffusers_class="Flux2Transformer2DModel",
    predict=predict,
    lora_sites=(
        r"transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
        r"|ff(_context)?\.linear_(in|out))"
        r"|single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)"
    ),
    keys=DIFFUSERS,
    text=TextRule(masked="zeroed", length=512, side="left"),
    width_key="joint_attention_dim",
    embedded_guidance=4.0,
    latent_scale=1.0,  # the VAE normalises its latents itself
    pixels=16,
    shift=shift,
    noise_levels=10_000,
)
