"""Tiny vision models of the real classes: diffusers folders, and the files that stock loaders take."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

CONTEXT, SCALE = 24, 0.5  # SCALE: of latents, as tiny bridges to the row "unet" record it
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
VELOCITY = {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction", **BETAS}
EPSILON = {"_class_name": "DDIMScheduler", "prediction_type": "epsilon", **BETAS}
PIXART_NOISE = EPSILON | {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}
KL = {"_class_name": "AutoencoderKL"}

TINY: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "cross_attention_dim": CONTEXT,
    "attention_head_dim": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}
VELOCITY_SHAPE = TINY | {
    "block_out_channels": (32, 64, 96),
    "layers_per_block": 2,
    "attention_head_dim": (2, 4, 6),
    "use_linear_projection": True,
    "transformer_layers_per_block": (1, 2, 1),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
# Widths of which 32 groups are no divisor: latent diffusion's U-Net in its context width, in less of everything else.
LDM_SHAPE = TINY | {"block_out_channels": (40, 80), "norm_num_groups": 8, "cross_attention_dim": 1280, "norm_eps": 1e-4}
# The smallest that the host's detection takes for Stable Diffusion 1: one level.
SD1_SHAPE = TINY | {
    "block_out_channels": (320,),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
}
# The smallest that it takes for one of SDXL's class (KOALA's depths).
SDXL_SHAPE = TINY | {
    "block_out_channels": (320, 320, 320),
    "cross_attention_dim": 2048,
    "attention_head_dim": 5,
    "use_linear_projection": True,
    "transformer_layers_per_block": (1, 2, 5),
    "reverse_transformer_layers_per_block": (1, 1, 1),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 6 * 256 + 1280,
}
# A U-Net that is told sizes and a pooled vector as SDXL's is, in widths of its own.
SIZED_SHAPE = TINY | {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 12,
}
# A PixArt of widths and positions that the host's detection does not know.
SMALL_PIXART: dict[str, Any] = {
    "num_layers": 2,
    "sample_size": 16,
    "num_attention_heads": 4,
    "attention_head_dim": 8,
    "cross_attention_dim": 32,
    "caption_channels": 48,
}
# ... and one that is told the picture's size and shape, as PixArt-XL-2-1024 is.
TOLD_PIXART = SMALL_PIXART | {"sample_size": 128, "num_attention_heads": 3, "cross_attention_dim": 24}


def folder(path: Path, model: Any, scheduler: dict[str, Any], vae: dict[str, Any] | None = None) -> Any:
    """A diffusers pipeline folder of the network in float16; returns it read again, in float32."""
    part = "unet" if "UNet" in type(model).__name__ else "transformer"
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.half().save_pretrained(path / part)
    beside(path, scheduler, vae)
    return type(model).from_pretrained(path / part).float().eval().requires_grad_(False)


def beside(path: Path, scheduler: dict[str, Any], vae: dict[str, Any] | None = None) -> None:
    """The configs of a pipeline folder that tell what its network predicts, and in which latents."""
    (path / "scheduler").mkdir(parents=True)
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    if vae is not None:
        (path / "vae").mkdir()
        (path / "vae" / "config.json").write_text(json.dumps(vae))


def unet(path: Path, scheduler: dict[str, Any], shape: dict[str, Any], scale: float | None = None) -> Any:
    """A U-Net's folder. scale: of its latents, put into its config; None = the pipeline or its row says it."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(2)
    model = folder(path, UNet2DConditionModel(**shape).eval().requires_grad_(False), scheduler)
    if scale is not None:
        config = path / "unet" / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"latent_scale": scale}))
    return model


def pixart(path: Path, **changes: Any) -> Any:
    """A PixArt's folder, by default one layer of PixArt-XL-2-512x512, the width that the host has hard-wired."""
    from diffusers import PixArtTransformer2DModel

    torch.manual_seed(6)
    shape: dict[str, Any] = {"num_layers": 1, "sample_size": 64, "caption_channels": 4096, "out_channels": 8} | changes
    return folder(path, PixArtTransformer2DModel(**shape).eval().requires_grad_(False), PIXART_NOISE, KL)


def sd3(path: Path) -> None:
    """A joint-attention model, whose context is as wide as PixArt's."""
    from diffusers import SD3Transformer2DModel

    model = SD3Transformer2DModel(
        num_layers=2, attention_head_dim=64, num_attention_heads=2, caption_projection_dim=128, pos_embed_max_size=16
    )
    save_file({name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}, path)


def taesd(channels: int = 4) -> dict[str, Tensor]:
    """A VAE of TAESD's architecture for latents of so many channels, under the names that the host reads."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(3)
    renamed: dict[str, Tensor] = {}
    for name, tensor in AutoencoderTiny(latent_channels=channels).state_dict().items():
        side, _, index, rest = name.split(".", 3)
        place = int(index) + (side == "decoder")  # TAESD's decoder counts its clamp
        renamed[f"taesd_{side}.{place}.{rest}"] = tensor.contiguous()
    return renamed


def clip_l() -> dict[str, Tensor]:
    """A CLIP-L of its true size, the one that the host knows, in float16 under the names that stock loaders take."""
    import transformers as hf

    sizes: dict[str, Any] = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
    }
    text = hf.CLIPTextModel(hf.CLIPTextConfig(**sizes)).half().state_dict()
    # as transformers 4 has them
    return {f"text_model.{name.removeprefix('text_model.')}": tensor.contiguous() for name, tensor in text.items()}


def checkpoint(path: Path, model: Any, clip: bool = False) -> None:
    """A file for CheckpointLoaderSimple: a U-Net under the names of the original releases, a VAE, and a CLIP of the one
    size that the host knows for Stable Diffusion 1."""
    state = {f"model.diffusion_model.{released(k, model.config)}": w.half() for k, w in model.state_dict().items()}
    state |= {f"first_stage_model.{name}": tensor for name, tensor in taesd().items()}
    if clip:
        state |= {f"cond_stage_model.transformer.{name}": tensor for name, tensor in clip_l().items()}
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)


OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def released(key: str, config: Any) -> str:
    """diffusers' name of a U-Net's weight -> that of the original releases, which the host reads."""
    module, kind = key.rsplit(".", 1)
    if module in OUTSIDE:
        return f"{OUTSIDE[module]}.{kind}"
    found = re.fullmatch(r"(down_blocks\.\d+|up_blocks\.\d+|mid_block)\.(\w+)\.(\d+)\.(.+)", module)
    assert found is not None, key
    block, part, number, rest = found[1], found[2], int(found[3]), RESNET.get(found[4], found[4])
    attention = int(part == "attentions")
    if block == "mid_block":
        return f"middle_block.{1 if attention else 2 * number}.{rest}.{kind}"
    side, level = block.split(".")
    if side == "down_blocks":
        first = (config.layers_per_block + 1) * int(level) + 1
        if part == "downsamplers":
            return f"input_blocks.{first + config.layers_per_block}.0.op.{kind}"
        return f"input_blocks.{first + number}.{attention}.{rest}.{kind}"
    first = (config.layers_per_block + 1) * int(level)
    if part == "upsamplers":
        after = 1 + ("CrossAttn" in config.up_block_types[int(level)])
        return f"output_blocks.{first + config.layers_per_block}.{after}.conv.{kind}"
    return f"output_blocks.{first + number}.{attention}.{rest}.{kind}"


def real_sizes() -> dict[str, tuple[list[str], dict[str, list[int]]]]:
    """LoRA sites and weight shapes of Stable Diffusion 1.4, SDXL and PixArt-XL-2-512x512, without their weights."""
    from diffusers import PixArtTransformer2DModel, UNet2DConditionModel
    from lavi_bridge.lavi_core.vision import VISION_TARGETS

    sdxl = SDXL_SHAPE | {
        "block_out_channels": (320, 640, 1280),
        "layers_per_block": 2,
        "transformer_layers_per_block": (1, 2, 10),
        "reverse_transformer_layers_per_block": None,
        "attention_head_dim": (5, 10, 20),
    }
    found = {}
    with torch.device("meta"):
        for kind, model in {
            "sd1": UNet2DConditionModel(cross_attention_dim=768),
            "sdxl": UNet2DConditionModel(**sdxl),
            "pixart": PixArtTransformer2DModel(sample_size=64, out_channels=8, caption_channels=4096),
        }.items():
            shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
            found[kind] = (VISION_TARGETS[kind].sites(model), shapes)
    return found
