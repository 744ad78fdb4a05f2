"""The models of ``training/recipes/modern``, tiny and random, in folders named as the recipes expect them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from lavi_bridge.tests.training import dits
from lavi_bridge.tests.training.paper import tokenizer, write_data

RECIPES = Path(__file__).parents[2] / "training" / "recipes" / "modern"
SIZES: dict[str, Any] = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 48}
SIZES |= {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 512}


def kl(channels: int, scale: float, shift: float | None = None) -> Any:
    blocks: dict[str, Any] = {
        "block_out_channels": (8, 8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    }
    return diffusers.AutoencoderKL(
        **blocks,
        norm_num_groups=4,
        latent_channels=channels,
        scaling_factor=scale,
        shift_factor=shift,
    )


def video(kind: str) -> Any:
    return getattr(diffusers, kind)(base_dim=8, z_dim=16, num_res_blocks=1)


def deep_compression() -> Any:
    """Of 32 pixels to a cell."""
    widths: dict[str, Any] = {
        "encoder_block_out_channels": (32,) * 6,
        "decoder_block_out_channels": (32,) * 6,
        "encoder_layers_per_block": (1,) * 6,
        "decoder_layers_per_block": (1,) * 6,
        "encoder_block_types": "ResBlock",
        "decoder_block_types": "ResBlock",
        "encoder_qkv_multiscales": ((),) * 6,
        "decoder_qkv_multiscales": ((),) * 6,
    }
    return diffusers.AutoencoderDC(
        **widths, latent_channels=32, downsample_block_type="Conv", upsample_block_type="interpolate"
    )


# recipe: (model's folder, family in dits.py, its VAE)
VISION: dict[str, tuple[str, str, Callable[[], Any]]] = {
    "t5-large-sd35-medium": ("stable-diffusion-3.5-medium", "sd3", lambda: kl(16, 1.5305, 0.0609)),
    "qwen3-0.6b-flux-dev": ("FLUX.1-dev", "flux", lambda: kl(16, 0.3611, 0.1159)),
    "qwen3-0.6b-z-image": ("Z-Image", "z_image", lambda: kl(16, 0.3611, 0.1159)),
    "smollm2-lumina2": ("Lumina-Image-2.0", "lumina2", lambda: kl(16, 0.3611, 0.1159)),
    "qwen3-0.6b-qwen-image": ("Qwen-Image", "qwen_image", lambda: video("AutoencoderKLQwenImage")),
    "t5-large-pixart-sigma": ("PixArt-Sigma-XL-2-1024-MS", "pixart_sigma", lambda: kl(4, 0.13025)),
    "t5-large-aura-flow": ("AuraFlow-v0.3", "aura_flow", lambda: kl(4, 0.13025)),
    "t5-large-chroma": ("Chroma1-HD", "chroma", lambda: kl(16, 0.3611, 0.1159)),
    "t5-large-cosmos": ("Cosmos-Predict2-2B-Text2Image", "cosmos", lambda: video("AutoencoderKLWan")),
    "qwen3-0.6b-anima": ("Anima", "cosmos", lambda: video("AutoencoderKLQwenImage")),
    "qwen3-0.6b-flux2-klein": ("FLUX.2-klein-4B", "flux2", dits.flux2_vae),
    "qwen3-0.6b-ernie-image": ("ERNIE-Image", "ernie_image", dits.flux2_vae),
    "t5-large-wan": ("Wan2.1-T2V-1.3B-Diffusers", "wan", lambda: video("AutoencoderKLWan")),
    "smollm2-sana": ("Sana_1600M_1024px_diffusers", "sana", deep_compression),
    "minilm-kolors": ("Kolors-diffusers", "kolors", lambda: kl(4, 0.13025)),
}


def write_models(folder: Path) -> None:
    """All language models and pipelines, and a table of four captioned pictures in ``data/``."""
    write_languages(folder / "models")
    for name, family, vae in VISION.values():
        dits.write(family, folder / "models" / name, own_latents=False)
        torch.manual_seed(4)
        vae().save_pretrained(folder / "models" / name / "vae")
    write_data(folder / "data")


def linked(models: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``folder``, in which recipes now find these models and their data, and where they write."""
    for name in ("models", "data"):
        (folder / name).symlink_to(models / name)
    monkeypatch.chdir(folder)
    return folder


def write_languages(folder: Path) -> None:
    import transformers as hf

    t5: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    qwen: dict[str, Any] = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
    for name, form, model in (
        ("t5-large", "$A </s>", lambda: hf.T5EncoderModel(hf.T5Config(vocab_size=32, **t5))),
        ("Qwen3-0.6B", "$A", lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**qwen))),
        ("SmolLM2-135M", "<s> $A", lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES))),
        ("all-MiniLM-L6-v2", "<s> $A </s>", lambda: hf.BertModel(hf.BertConfig(**SIZES), add_pooling_layer=False)),
    ):
        torch.manual_seed(1)
        model().save_pretrained(folder / name)
        tokenizer(form).save_pretrained(folder / name)
