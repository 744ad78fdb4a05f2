"""Chroma: Flux.1's blocks with a mask in the place of the pooled vector, and no guidance embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..conditioning import Conditioning
from .call import NUM_TIMESTEPS, Told, grid_ids, pack, real, unpack
from .flux import SITES
from .keys import DIFFUSERS
from .target import VisionTarget
from .text import TextRule


def predict(network: nn.Module, x: Tensor, timesteps: Tensor, heard: Conditioning, told: Told) -> Tensor:
    """The mask is over text and picture, and bool: numbers would be added to the attention scores."""
    h, w = x.shape[-2:]
    latents, text = pack(x), real(heard)
    predicted = network(
        hidden_states=latents,
        timestep=timesteps / NUM_TIMESTEPS,
        encoder_hidden_states=heard.context,
        txt_ids=x.new_zeros(heard.context.shape[1], 3),
        img_ids=grid_ids(h // 2, w // 2, x.device),
        attention_mask=torch.cat([text, text.new_ones(latents.shape[:2])], dim=1),
    ).sample
    return unpack(predicted, h, w)


CHROMA = VisionTarget(
    name="chroma",
    diffusers_class="ChromaTransformer2DModel",
    predict=predict,
    lora_sites=SITES,
    keys=DIFFUSERS,
    text=TextRule(masked="left_out", unmasked=1),  # it was trained with one padding token, to put aside what it needs
    width_key="joint_attention_dim",
    latent_scale=0.3611,
    latent_shift=0.1159,
    patch=2,
    packing=4,
    noise_levels=10_000,
)
