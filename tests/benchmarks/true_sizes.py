"""The paper's models at their true sizes, with random weights, written to folders as their publishers lay them out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

SHARD = 2 << 30  # bytes

_T5: dict[str, Any] = {"model_type": "t5", "vocab_size": 32128, "feed_forward_proj": "relu", "d_kv": 64}
LANGUAGE: dict[str, dict[str, Any]] = {
    "clip-l": {
        "model_type": "clip_text_model",
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
    },
    "t5-small": {**_T5, "d_model": 512, "d_ff": 2048, "num_layers": 6, "num_heads": 8},
    "t5-base": {**_T5, "d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
    "t5-large": {**_T5, "d_model": 1024, "d_ff": 4096, "num_layers": 24, "num_heads": 16},
    "llama-2-7b": {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 4096,
    },
}
BEYOND_THE_PAPER: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
}
CLASSES = {"clip_text_model": "CLIPTextModel", "t5": "T5EncoderModel", "llama": "LlamaForCausalLM"}

_SD: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
_SCALED_LINEAR = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "epsilon",
    "num_train_timesteps": 1000,
}
VISION: dict[str, dict[str, Any]] = {
    "sd14": _SD,
    "sd14-half": {**_SD, "block_out_channels": [160, 320, 640, 640]},  # in width: a quarter of the weights
    "ldm": {**_SD, "sample_size": 32, "cross_attention_dim": 1280},
    "sdxl": {
        **_SD,
        "sample_size": 128,
        "block_out_channels": [320, 640, 1280],
        "attention_head_dim": [5, 10, 20],
        "transformer_layers_per_block": [1, 2, 10],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "pixart": {
        "_class_name": "PixArtTransformer2DModel",
        "sample_size": 64,
        "num_layers": 28,
        "num_attention_heads": 16,
        "attention_head_dim": 72,
        "in_channels": 4,
        "out_channels": 8,
        "patch_size": 2,
        "cross_attention_dim": 1152,
        "caption_channels": 4096,
    },
}
SCHEDULERS: dict[str, dict[str, Any]] = {
    "pixart": {**_SCALED_LINEAR, "beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}
}
WORDS = ("a", "red", "circle", "left", "of", "blue", "square", "two", "elephants", "in", "the", "forest")


def make_narrow(language: str, vision: str) -> None:
    """From now on a T5 and a U-Net of these names have their depth and a few channels."""
    LANGUAGE[language] |= {"d_model": 64, "d_ff": 128, "d_kv": 4}
    narrow = {"block_out_channels": [32, 32, 64, 64], "cross_attention_dim": 48, "norm_num_groups": 8}
    VISION[vision] = {**VISION[vision], **narrow}


def write_language(name: str, folder: Path) -> Path:
    """A language model's folder: config, tokenizer, bfloat16 weights in shards."""
    import transformers

    config = (LANGUAGE | BEYOND_THE_PAPER)[name]
    made = transformers.AutoConfig.for_model(**config)
    with torch.device("meta"):
        model = getattr(transformers, CLASSES[config["model_type"]])(made)
    folder.mkdir(parents=True, exist_ok=True)
    made.save_pretrained(folder)
    tokenizer(config["model_type"]).save_pretrained(folder)
    write_weights(model, folder, "model", torch.bfloat16)
    return folder


def write_vision(name: str, folder: Path) -> Path:
    """A pipeline folder: network, scheduler and a KL VAE, float16."""
    import diffusers

    config = VISION[name]
    part = folder / ("transformer" if "caption_channels" in config else "unet")
    network = _diffusers(config, part)
    write_weights(network, part, "diffusion_pytorch_model", torch.float16)
    (folder / "scheduler").mkdir(parents=True, exist_ok=True)
    scheduler = SCHEDULERS.get(name, _SCALED_LINEAR)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    scale = 0.13025 if name == "sdxl" else 0.18215
    vae = {
        "_class_name": diffusers.AutoencoderKL.__name__,
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
        "scaling_factor": scale,
    }
    write_weights(_diffusers(vae, folder / "vae"), folder / "vae", "diffusion_pytorch_model", torch.float16)
    return folder


def _diffusers(config: dict[str, Any], folder: Path) -> nn.Module:
    import diffusers

    with torch.device("meta"):
        model = getattr(diffusers, config["_class_name"]).from_config(config)
    model.save_config(folder)
    return model


def tokenizer(model_type: str) -> Any:
    """A tokenizer of a few words, with the special tokens of the family; its ids lie inside the true vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = {"t5": ["<pad>", "</s>", "<unk>"], "llama": ["<unk>", "<s>", "</s>"]}.get(
        model_type, ["<unk>", "<|startoftext|>", "<|endoftext|>"]
    )
    words = {word: i for i, word in enumerate([*special, *dict.fromkeys(WORDS)])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    ends = {
        "t5": ("$A </s>", [special[1]], {"eos_token": "</s>", "pad_token": "<pad>"}),
        "llama": ("<s> $A", [special[1]], {"bos_token": "<s>", "eos_token": "</s>"}),
    }
    around = f"{special[1]} $A {special[2]}"
    clip = {"bos_token": special[1], "eos_token": special[2], "pad_token": special[2]}
    form, used, names = ends.get(model_type, (around, special[1:], clip))
    backend.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=form, special_tokens=[(token, words[token]) for token in used]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **names)


def write_weights(model: nn.Module, folder: Path, stem: str, dtype: torch.dtype) -> None:
    """Random weights for a model on the meta device, one shard in memory at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = list(_shards(model, dtype))
    if len(shards) == 1:
        save_file(_filled(shards[0], dtype), folder / f"{stem}.safetensors", {"format": "pt"})
        return
    weight_map = {}
    for i, names in enumerate(shards):
        file = f"{stem}-{i + 1:05}-of-{len(shards):05}.safetensors"
        save_file(_filled(names, dtype), folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


def _shards(model: nn.Module, dtype: torch.dtype) -> Iterator[dict[str, tuple[int, ...]]]:
    names: dict[str, tuple[int, ...]] = {}
    size, limit = 0, SHARD if sum(p.numel() for p in model.parameters()) * dtype.itemsize > 6 * SHARD else 1 << 60
    for name, parameter in model.named_parameters():  # shared ones once
        names[name] = tuple(parameter.shape)
        size += parameter.numel() * dtype.itemsize
        if size > limit:
            yield names
            names, size = {}, 0
    if names:
        yield names


def _filled(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> dict[str, Tensor]:
    """Matrices from one block of noise, scaled to unit gain, at offsets of their own; norms 1, biases 0."""
    noise = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)).to(dtype)
    filled = {}
    for i, (name, shape) in enumerate(shapes.items()):
        if len(shape) < 2:
            filled[name] = torch.full(shape, float(name.endswith("weight")), dtype=dtype)
            continue
        count = torch.Size(shape).numel()
        block = noise.roll(i * 7919) * (0.02 if "embed" in name or "shared" in name else shape[0] / count) ** 0.5
        filled[name] = block.repeat(-(-count // len(block)))[:count].reshape(shape)
    return filled
