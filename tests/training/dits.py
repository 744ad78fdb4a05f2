"""Tiny vision models of diffusers' own classes, each with random weights everywhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler as Flow
from diffusers.models.transformers import transformer_cosmos
from lavi_bridge.lavi_core.vision.cosmos import resize_without_torchvision
from torch import Tensor, nn

TEXT, POOLED = 40, 24


@dataclass(frozen=True)
class Prompt:
    """context [1 T 40], with the mask [1 T] long and the pooled vector [1 24] where a model takes them."""

    context: Tensor
    mask: Tensor
    pooled: Tensor


@dataclass(frozen=True, kw_only=True)
class Family:
    """pixels: to a latent cell. masks: whether diffusers' pipeline hears the prompts' masks. guidance: to draw with."""

    build: Callable[[], nn.Module]
    scheduler: Callable[[], Any]
    channels: int = 16
    pixels: int = 8
    folder: str = "transformer"
    masks: bool = False
    guidance: float = 3.0


def sd3() -> nn.Module:
    return diffusers.SD3Transformer2DModel(
        sample_size=16,
        num_layers=2,
        attention_head_dim=64,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        caption_projection_dim=128,
        pooled_projection_dim=POOLED,
        pos_embed_max_size=24,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )


def flux(guidance_embeds: bool) -> nn.Module:
    return diffusers.FluxTransformer2DModel(
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=128,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        pooled_projection_dim=POOLED,
        guidance_embeds=guidance_embeds,
    )


def z_image() -> nn.Module:
    return diffusers.ZImageTransformer2DModel(
        dim=96,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=TEXT,
        axes_dims=[16, 16, 16],
        axes_lens=[256, 64, 64],
    )


def lumina2() -> nn.Module:
    return diffusers.Lumina2Transformer2DModel(
        sample_size=16,
        hidden_size=96,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=32,
        axes_dim_rope=(8, 8, 8),
        axes_lens=(300, 64, 64),
        cap_feat_dim=TEXT,
    )


def qwen_image() -> nn.Module:
    return diffusers.QwenImageTransformer2DModel(
        num_layers=2, attention_head_dim=128, num_attention_heads=2, joint_attention_dim=TEXT
    )


def aura_flow() -> nn.Module:
    return diffusers.AuraFlowTransformer2DModel(
        sample_size=16,
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        caption_projection_dim=64,
        pos_embed_max_size=144,
    )


def chroma() -> nn.Module:
    return diffusers.ChromaTransformer2DModel(
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=128,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        approximator_num_channels=64,
        approximator_hidden_dim=32,
        approximator_layers=2,
    )


def cosmos() -> nn.Module:
    resize_without_torchvision(transformer_cosmos)
    return diffusers.CosmosTransformer3DModel(
        in_channels=16,
        out_channels=16,
        num_attention_heads=2,
        attention_head_dim=32,
        num_layers=2,
        text_embed_dim=TEXT,
        adaln_lora_dim=16,
        extra_pos_embed_type=None,
    )


def flux2() -> nn.Module:
    return diffusers.Flux2Transformer2DModel(
        in_channels=32,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        timestep_guidance_channels=32,
        axes_dims_rope=(8, 8, 8, 8),
        guidance_embeds=False,
    )


def flux2_vae() -> Any:
    torch.manual_seed(0)
    vae: Any = diffusers.AutoencoderKLFlux2(
        latent_channels=8, block_out_channels=(8, 8, 8, 8), norm_num_groups=4, layers_per_block=1
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2)
    return vae.eval().requires_grad_(False)


def wan() -> nn.Module:
    return diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        text_dim=TEXT,
        freq_dim=32,
        ffn_dim=48,
        cross_attn_norm=True,
        rope_max_seq_len=32,
    )


def sana() -> nn.Module:
    return diffusers.SanaTransformer2DModel(
        in_channels=32,
        out_channels=32,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=TEXT,
        sample_size=8,
    )


def ernie_image() -> nn.Module:
    return diffusers.ErnieImageTransformer2DModel(
        hidden_size=48,
        num_attention_heads=2,
        num_layers=2,
        ffn_hidden_size=64,
        in_channels=32,
        out_channels=32,
        text_in_dim=TEXT,
        rope_axes_dim=(8, 8, 8),
    )


def pixart_sigma() -> nn.Module:
    return diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        cross_attention_dim=24,
        sample_size=16,
        num_layers=2,
        caption_channels=TEXT,
        use_additional_conditions=False,
    )


def kolors() -> nn.Module:
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=2,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=POOLED + 6 * 8,
        encoder_hid_dim=TEXT,
        encoder_hid_dim_type="text_proj",
    )


def diffusion(**more: Any) -> Any:
    """diffusers scales the first noise by the largest sigma alone; "trailing" is ComfyUI's spacing."""
    return diffusers.EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, timestep_spacing="trailing", **more
    )


DYNAMIC: dict[str, Any] = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}

FAMILIES: dict[str, Family] = {
    "sd3": Family(
        build=sd3,
        scheduler=lambda: Flow(shift=3.0),
    ),
    "flux": Family(
        build=lambda: flux(True),
        scheduler=lambda: Flow(shift=3.0, **DYNAMIC),
    ),
    "flux_schnell": Family(
        build=lambda: flux(False),
        scheduler=lambda: Flow(shift=1.0),
    ),
    "z_image": Family(
        build=z_image,
        scheduler=lambda: Flow(shift=3.0),
        masks=True,
    ),
    "lumina2": Family(
        build=lumina2,
        scheduler=lambda: Flow(shift=6.0),
        masks=True,
    ),
    "qwen_image": Family(
        build=qwen_image,
        scheduler=lambda: Flow(**DYNAMIC),
        masks=True,
        guidance=1.0,
    ),
    "aura_flow": Family(
        build=aura_flow,
        scheduler=lambda: Flow(shift=1.73),
        channels=4,
        masks=True,
    ),
    "chroma": Family(
        build=chroma,
        scheduler=lambda: Flow(shift=3.0, **DYNAMIC),
        masks=True,
    ),
    "cosmos": Family(
        build=cosmos,
        scheduler=lambda: Flow(use_karras_sigmas=True),
        masks=True,
    ),
    "flux2": Family(
        build=flux2,
        scheduler=lambda: Flow(shift=3.0),
        channels=32,
        pixels=16,
        masks=True,
    ),
    "wan": Family(
        build=wan,
        scheduler=lambda: Flow(shift=3.0),
        masks=True,
    ),
    "sana": Family(
        build=sana,
        scheduler=lambda: Flow(shift=3.0),
        channels=32,
        pixels=32,
        masks=True,
    ),
    "ernie_image": Family(
        build=ernie_image,
        scheduler=lambda: Flow(shift=4.0),
        channels=32,
        pixels=16,
        masks=True,
    ),
    "pixart_sigma": Family(
        build=pixart_sigma,
        scheduler=diffusion,
        channels=4,
        masks=True,
    ),
    "kolors": Family(
        build=kolors,
        scheduler=lambda: diffusion(num_train_timesteps=1100, beta_end=0.014),
        channels=4,
        folder="unet",
    ),
}


@torch.no_grad()
def filled(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights everywhere, so that no gate, modulation or head is zero."""
    g = torch.Generator().manual_seed(seed)
    for name, p in sorted(network.named_parameters()):
        r = torch.randn(p.shape, generator=g)
        if p.ndim >= 2:
            p.copy_(r * (0.7 / max(1.0, p[0].numel()) ** 0.5) if p.shape[0] > 1 else r * 0.3)
        elif "norm" in name and name.endswith("weight"):
            p.copy_(1 + 0.2 * r)
        else:
            p.copy_(0.2 * r)
    return network.eval().requires_grad_(False)


def write(
    family: str, folder: Path, own_latents: bool = True, changes: Mapping[str, Any] = MappingProxyType({})
) -> Any:
    """The network and its scheduler in a pipeline's folder. own_latents: what it sees is what it is given. changes: to
    its config."""
    row = FAMILIES[family]
    network: Any = row.build()
    if changes:
        network = type(network).from_config({**network.config, **changes})
    filled(network)
    network.save_pretrained(folder / row.folder)
    if own_latents:
        config = folder / row.folder / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"latent_scale": 1.0}))
    row.scheduler().save_pretrained(folder / "scheduler")
    return network


def prompt(seed: int, tokens: int, length: int) -> Prompt:
    """``tokens`` real ones in front of random padding, ``length`` in all."""
    g = torch.Generator().manual_seed(seed)
    mask = (torch.arange(length) < tokens).long()[None]
    return Prompt(torch.randn(1, length, TEXT, generator=g), mask, torch.randn(1, POOLED, generator=g))
