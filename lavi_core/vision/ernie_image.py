"""ERNIE-Image: one stream of picture and text over Flux.2's latents, the picture's position behind the last token."""

from __future__ import annotations

from torch import Tensor, nn

from ..conditioning import Conditioning
from .call import Told, real
from .keys import DIFFUSERS
from .target import VisionTarget
from .text import TextRule


def predict(network: nn.Module, x: Tensor, timesteps: Tensor, heard: Conditioning, told: Told) -> Tensor:
    return network(hidden_states=x, timestep=timesteps, text_bth=heard.context, text_lens=real(heard).sum(1)).sample


ERNIE_IMAGE = VisionTarget(
    name="ernie_image",
    diffusers_class="ErnieImageTransformer2DModel",
    predict=predict,
    lora_sites=r"layers\.\d+\.(self_attention\.(to_q|to_k|to_v|to_out\.0)|mlp\.(gate_proj|up_proj|linear_fc2))",
    keys=DIFFUSERS,
    text=TextRule(masked="left_out"),
    blocks="layers",
    width_key="text_in_dim",
    latent_scale=1.0,  # the VAE normalises its latents itself
    pixels=16,
)
