"""Flux.1, dev and schnell: joint and single blocks over packed latents, a pooled vector, no mask."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from ..conditioning import Conditioning
from .call import NUM_TIMESTEPS, Told, grid_ids, pack, unpack
from .keys import DIFFUSERS
from .target import VisionTarget
from .text import TextRule

# Of Chroma too, whose blocks are the same.
SITES = (
    r"transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
    r"|ff(_context)?\.net\.(0\.proj|2))"
    r"|single_transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v)|proj_mlp|proj_out)"
)


def predict(network: nn.Module, x: Tensor, timesteps: Tensor, heard: Conditioning, told: Told) -> Tensor:
    """The guidance that dev embeds is a number of its own, beside classifier-free guidance."""
    h, w = x.shape[-2:]
    embeds = told.config["guidance_embeds"]
    predicted = network(
        hidden_states=pack(x),
        timestep=timesteps / NUM_TIMESTEPS,
        guidance=timesteps.new_full(timesteps.shape, told.guidance) if embeds else None,
        encoder_hidden_states=heard.context,
        pooled_projections=heard.pooled,
        txt_ids=x.new_zeros(heard.context.shape[1], 3),
        img_ids=grid_ids(h // 2, w // 2, x.device),
    ).sample
    return unpack(predicted, h, w)


FLUX = VisionTarget(
    name="flux",
    diffusers_class="FluxTransformer2DModel",
    predict=predict,
    lora_sites=SITES,
    keys=DIFFUSERS,
    text=TextRule(masked="refused"),
    width_key="joint_attention_dim",
    pooled_key="pooled_projection_dim",
    embedded_guidance=3.5,
    latent_scale=0.3611,
    latent_shift=0.1159,
    patch=2,
    packing=4,
    noise_levels=10_000,
)

# Without guidance embedding and shift; ComfyUI has another kind of sampling for it, with another table of noise levels.
FLUX_SCHNELL = replace(
    FLUX, name="flux_schnell", told_by={"guidance_embeds": False}, embedded_guidance=1.0, noise_levels=1000
)
