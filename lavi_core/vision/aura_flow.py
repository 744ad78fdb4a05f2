"""AuraFlow: joint and single blocks on SDXL's latents; text up to 256 tokens with zeros, which are attended."""

from __future__ import annotations

from torch import Tensor, nn

from ..conditioning import Conditioning
from .call import NUM_TIMESTEPS, Told
from .keys import DIFFUSERS
from .target import VisionTarget
from .text import TextRule


def predict(network: nn.Module, x: Tensor, timesteps: Tensor, heard: Conditioning, told: Told) -> Tensor:
    return network(
        hidden_states=x,
        timestep=timesteps / NUM_TIMESTEPS,
        encoder_hidden_states=heard.context,
    ).sample


AURA_FLOW = VisionTarget(
    name="aura_flow",
    diffusers_class="AuraFlowTransformer2DModel",
    predict=predict,
    lora_sites=(
        r"joint_transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
        r"|ff(_context)?\.(linear_1|linear_2|out_projection))"
        r"|single_transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v|to_out\.0)|ff\.(linear_1|linear_2|out_projection))"
    ),
    keys=DIFFUSERS,
    text=TextRule(masked="zeroed", length=256),
    width_key="joint_attention_dim",
    latent_scale=0.13025,
    patch=2,
    even=True,
)
