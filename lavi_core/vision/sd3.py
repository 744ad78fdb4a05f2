"""Stable Diffusion 3 and 3.5 (arXiv 2403.03206): joint attention over text and picture, a pooled vector, no mask."""

from __future__ import annotations

from torch import Tensor, nn

from ..conditioning import Conditioning
from .call import Told
from .keys import DIFFUSERS
from .target import VisionTarget
from .text import TextRule


def predict(network: nn.Module, x: Tensor, timesteps: Tensor, heard: Conditioning, told: Told) -> Tensor:
    return network(
        hidden_states=x,
        timestep=timesteps,
        encoder_hidden_states=heard.context,
        pooled_projections=heard.pooled,
    ).sample


SD3 = VisionTarget(
    name="sd3",
    diffusers_class="SD3Transformer2DModel",
    predict=predict,
    lora_sites=(
        r"transformer_blocks\.\d+\.(attn2?\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
        r"|ff(_context)?\.net\.(0\.proj|2))"
    ),
    idle_sites=r"transformer_blocks\.{last}\.attn\.add_q_proj",  # the text's own output is not used there
    keys=DIFFUSERS,
    text=TextRule(masked="refused"),
    width_key="joint_attention_dim",
    pooled_key="pooled_projection_dim",
    latent_scale=1.5305,
    latent_shift=0.0609,
    patch=2,
)
