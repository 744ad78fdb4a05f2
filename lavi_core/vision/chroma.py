"""Chroma: Flux.1's blocks with a mask in the place of the pooled vector, and no guidance embedding."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..conditioning import Conditioning
from .call import NUM_TIMESTEPS, Told, grid_ids, pack, unpack
from .flux import SITES
from .keys import DIFFUSERS
from .target import VisionTarget
from .text import TextRule


def predict(network: nn.Module, x: Tensor, timesteps: Tensor, heard: Conditioning, told: Told) -> Tensor:
    """With gradient checkpointing the single blocks of diffusers' class (0.42) are not given the mask: each prompt is
    then run by itself, without padding."""
    if heard.mask is None or not (torch.is_grad_enabled() and getattr(network, "gradient_checkpointing", False)):
        return _call(network, x, timesteps, heard)
    lengths = heard.mask.sum(1).tolist()
    alone = [replace(heard, context=heard.context[i : i + 1, :n], mask=None) for i, n in enumerate(lengths)]
    parts = zip(x.split(1), timesteps.split(1), alone, strict=True)
    return torch.cat([_call(network, *part) for part in parts])


def _call(network: nn.Module, x: Tensor, timesteps: Tensor, heard: Conditioning) -> Tensor:
    """The mask is over text and picture, and bool: numbers would be added to the attention scores."""
    h, w = x.shape[-2:]
    latents, mask = pack(x), heard.mask
    predicted = network(
        hidden_states=latents,
        timestep=timesteps / NUM_TIMESTEPS,
        encoder_hidden_states=heard.context,
        txt_ids=x.new_zeros(heard.context.shape[1], 3),
        img_ids=grid_ids(h // 2, w // 2, x.device),
        attention_mask=None if mask is None else torch.cat([mask, mask.new_ones(latents.shape[:2])], dim=1),
    ).sample
    return unpack(predicted, h, w)


CHROMA = VisionTarget(
    name="chroma",
    diffusers_class="ChromaTransformer2DModel",
    predict=predict,
    lora_sites=SITES,
    keys=DIFFUSERS,
    text=TextRule(masked="left_out", unmasked=1),  # it was trained with one token of padding behind the text
    width_key="joint_attention_dim",
    latent_scale=0.3611,
    latent_shift=0.1159,
    patch=2,
    packing=4,
    noise_levels=10_000,
)
