"""Cosmos-Predict2 (text to image) and Anima, whose network is the same: cross-attention to 512 tokens, one frame."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..conditioning import Conditioning
from .call import NUM_TIMESTEPS, Told
from .keys import host_keys
from .target import VisionTarget
from .text import TextRule
from .wan import LATENT_MEAN, LATENT_SCALE


def predict(network: nn.Module, x: Tensor, timesteps: Tensor, heard: Conditioning, told: Told) -> Tensor:
    """padding_mask: of the parts of a picture that are not its own; there are none."""
    resize_without_torchvision(sys.modules[type(network).__module__])
    return network(
        hidden_states=x.unsqueeze(2),
        timestep=timesteps / NUM_TIMESTEPS,
        encoder_hidden_states=heard.context,
        padding_mask=x.new_zeros(1, 1, *told.size),
    ).sample.squeeze(2)


def resize_without_torchvision(diffusers_module: Any) -> None:
    """diffusers' module (0.42) resizes the padding mask, here zeros, with torchvision, and has no such name without it
    (findings/cosmos-resize.sh); not every build of torch has one of torchvision beside it."""
    if not hasattr(diffusers_module, "transforms"):
        nearest = SimpleNamespace(NEAREST="nearest-exact")
        resize = SimpleNamespace(resize=lambda x, size, interpolation: interpolate(x, size, mode=interpolation))
        diffusers_module.transforms = SimpleNamespace(functional=resize, InterpolationMode=nearest)


COSMOS = VisionTarget(
    name="cosmos",
    diffusers_class="CosmosTransformer3DModel",
    predict=predict,
    lora_sites=r"transformer_blocks\.\d+\.(attn[12]\.(to_q|to_k|to_v|to_out\.0)|ff\.net\.(0\.proj|2))",
    keys=host_keys(
        (r"^transformer_blocks\.", "blocks."),
        (r"\.attn1\.", ".self_attn."),
        (r"\.attn2\.", ".cross_attn."),
        (r"\.to_out\.0$", ".output_proj"),
        (r"\.to_([qkv])$", r".\1_proj"),
        (r"\.ff\.net\.0\.proj$", ".mlp.layer1"),
        (r"\.ff\.net\.2$", ".mlp.layer2"),
    ),
    # It attends to any number; the most that diffusers' Anima pipeline takes.
    text=TextRule(masked="zeroed", length=512, longest=4096),
    width_key="text_embed_dim",
    latent_scale=LATENT_SCALE,
    latent_shift=LATENT_MEAN,
    patch=2,
)
