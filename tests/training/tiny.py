"""A tiny vision model, VAE, text encoder and recipe: diffusers' and transformers' own classes with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from lavi_bridge.lavi_core.files import write_safetensors
from lavi_bridge.training.demo.autoencoder import taesd_state
from lavi_bridge.training.demo.start import tokenizer
from lavi_bridge.training.shapebench import VOCABULARIES


def write_tiny(folder: Path) -> Path:
    """vision/{unet,scheduler}, text_encoder/ and vae.safetensors."""
    from diffusers import AutoencoderTiny, FlowMatchEulerDiscreteScheduler, UNet2DConditionModel
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    UNet2DConditionModel(
        sample_size=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=2,
    ).save_pretrained(folder / "vision" / "unet")
    config = folder / "vision" / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"latent_scale": 1.0}))
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "vision" / "scheduler")
    words = tokenizer(VOCABULARIES["small"], 24)
    words.save_pretrained(folder / "text_encoder")
    BertModel(
        BertConfig(
            vocab_size=len(words),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=48,
            max_position_embeddings=24,
        ),
        add_pooling_layer=False,
    ).save_pretrained(folder / "text_encoder")
    write_safetensors(folder / "vae.safetensors", taesd_state(AutoencoderTiny()))
    return folder


def write_recipe(path: Path, models: Path, output: Path) -> Path:
    """A recipe of 6 steps on 16 ShapeBench pictures of 32 pixels."""
    path.write_text(f"""
name = "tiny"
output = {json.dumps(str(output))}
steps = 6
batch_size = 4
save_every = 2
precision = "fp32"
[language]
model = {json.dumps(str(models / "text_encoder"))}
rank = 2
alpha = 2.0
learning_rate = 1e-3
[prompt]
max_length = 16
[adapter]
learning_rate = 1e-3
[vision]
model = {json.dumps(str(models / "vision"))}
vae = {json.dumps(str(models / "vae.safetensors"))}
target = "unet"
rank = 2
alpha = 2.0
[data]
kind = "shapebench"
resolution = 32
count = 16
""")
    return path
