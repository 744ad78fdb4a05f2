"""The paper's recipes against the paper's table: sizes of adapters and of LoRA at the true sizes, and the numbers."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from lavi_bridge.lavi_core import adapters
from lavi_bridge.lavi_core.config import AdapterConfig
from lavi_bridge.lavi_core.language import family_of
from lavi_bridge.lavi_core.lora import is_site
from lavi_bridge.lavi_core.vision import target_of
from lavi_bridge.tests.training.paper import RECIPES
from lavi_bridge.training.recipe import Recipe, read_recipe
from torch import nn

T5: dict[str, Any] = {"model_type": "t5", "vocab_size": 32128, "d_kv": 64}
LANGUAGES: dict[str, dict[str, Any]] = {
    "clip-l": {
        "model_type": "clip_text_model",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
    "t5-small": {**T5, "d_model": 512, "d_ff": 2048, "num_layers": 6, "num_heads": 8},
    "t5-base": {**T5, "d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
    "t5-large": {**T5, "d_model": 1024, "d_ff": 4096, "num_layers": 24, "num_heads": 16},
    "llama-2-7b": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
}
UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "block_out_channels": [320, 640, 1280, 1280],
    "attention_head_dim": 8,
}
VISIONS: dict[str, dict[str, Any]] = {
    "sd14": {**UNET, "cross_attention_dim": 768},
    "ldm": {**UNET, "cross_attention_dim": 1280},
    "sdxl": {
        **UNET,
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
    "pixart": {"_class_name": "PixArtTransformer2DModel", "sample_size": 64, "caption_channels": 4096},
}
# pair -> the adapter's widths and million parameters (without a pooled head), then LoRA sites and million parameters of
# the language model and of the vision model; None = no word of it in the paper or the released code.
TABLE = {
    "clip-l-sd14": ((768, 768, 768), 14.17, 48, 2.36, 224, 28.29),
    "t5-small-sd14": ((512, 640, 768), 8.66, 24, 0.79, 224, 28.29),
    "t5-base-sd14": ((768, 768, 768), 14.17, 48, 2.36, 224, 28.29),
    "t5-large-sd14": ((1024, 896, 768), 21.25, 96, 6.29, 224, 28.29),
    "llama-2-7b-sd14": ((4096, 2432, 768), 228.92, 128, 33.55, 224, 28.29),
    "t5-large-ldm": ((1024, 1152, 1280), 29.65, 96, 6.29, 224, None),
    "t5-large-pixart": ((1024, 2560, 4096), 113.29, 96, 6.29, 224, 16.52),
    "t5-large-sdxl": ((1024, 1536, 2048), None, 96, 6.29, None, None),
}


def recipe(pair: str) -> Recipe:
    return read_recipe(RECIPES / f"{pair}.toml")


def test_the_table_is_the_folder() -> None:
    """But for those of an hour, which are not the paper's."""
    assert sorted(TABLE) == sorted(path.stem for path in RECIPES.iterdir() if not path.stem.endswith("-hour"))


def language(name: str) -> tuple[nn.Module, list[str], int]:
    """(the model without its weights, its LoRA sites, its width)"""
    import transformers as hf

    config = hf.AutoConfig.for_model(**LANGUAGES[name])
    family = family_of(config.model_type)
    loader: Any = getattr(hf, family.loader)
    with torch.device("meta"):
        model = loader.from_config(config) if hasattr(loader, "from_config") else loader(config)
    sites = [path for path, m in model.named_modules() if is_site(m) and re.fullmatch(family.lora_sites, path)]
    return model, sites, config.hidden_size


def vision(name: str) -> nn.Module:
    import diffusers

    with torch.device("meta"):
        return getattr(diffusers, VISIONS[name]["_class_name"]).from_config(VISIONS[name])


def million(model: nn.Module, sites: list[str], rank: int) -> float:
    """Parameters of a LoRA of this rank."""
    modules: list[Any] = [model.get_submodule(path) for path in sites]
    shapes = [module.weight.shape for module in modules]
    return round(sum(rank * (shape[0] + shape[1:].numel()) for shape in shapes) / 1e6, 2)


@pytest.mark.parametrize("pair", TABLE)
def test_sizes_are_the_papers(pair: str) -> None:
    widths, adapter, language_sites, language_lora, vision_sites, vision_lora = TABLE[pair]
    read, name = recipe(pair), pair.rpartition("-")
    model, sites, width = language(name[0])
    row = target_of(VISIONS[name[2]])
    context, pooled = row.context_width(VISIONS[name[2]]), row.pooled_width(VISIONS[name[2]])
    assert read.adapter.inner_width is None  # by the authors' rule
    assert (width, adapters.inner_width(width, context), context) == widths
    assert pooled == (1280 if name[2] == "sdxl" else None)
    with torch.device("meta"):
        built = adapters.build(
            AdapterConfig(kind=read.adapter.kind, in_width=width, inner_width=widths[1], out_width=context)
        )
    assert adapter in (None, round(sum(p.numel() for p in built.parameters()) / 1e6, 2))
    assert (len(sites), million(model, sites, read.language.rank)) == (language_sites, language_lora)
    network = vision(name[2])
    found = row.sites(network)
    assert vision_sites in (None, len(found))
    assert vision_lora in (None, million(network, found, read.vision.rank))


@pytest.mark.parametrize("pair", TABLE)
def test_numbers_are_the_authors(pair: str) -> None:
    """PAPER.md 1.2 and 1.3: what the released code does, but for caption dropout, which is ours."""
    read = recipe(pair)
    pixart = pair.endswith("pixart")
    rate = 2e-5 if pixart else 1e-4
    assert (read.vision.learning_rate, read.adapter.learning_rate, read.language.learning_rate) == (rate, rate, 5e-6)
    assert (read.prompt.max_length, read.prompt.language_mask, read.prompt.vision_mask) == (
        (120, True, True) if pixart else (77, False, False)
    )
    assert (read.prompt.hidden_states, read.prompt.template, read.prompt.padding_side) == ("last", "{prompt}", "right")
    assert read.prompt.pad_token == ("<unk>" if pair.startswith("llama") else None)
    for section in (read.language, read.vision):
        assert (section.train, section.rank, section.alpha, section.dropout) == ("lora", 32, 32.0, 0.1)
    optimizer = read.optimizer
    assert (optimizer.betas, optimizer.weight_decay, optimizer.eps) == ((0.9, 0.999), 1e-2, 1e-8)
    assert (optimizer.clip_norm, optimizer.schedule, optimizer.warmup) == (1.0, "constant", 0)
    assert (read.steps, read.batch_size, read.precision, read.align.steps) == (50_000, 256, "fp32", 0)
    assert read.data.resolution == {"ldm": 256, "sdxl": 1024}.get(pair.rpartition("-")[2], 512)
    assert read.vision.target is None


@pytest.mark.parametrize("pair", [pair for pair in TABLE if not pair.endswith("sdxl")])
def test_what_is_not_verified_is_marked_on_its_line(pair: str) -> None:
    lines = (RECIPES / f"{pair}.toml").read_text().splitlines()
    recalled = ["batch_size", *(["resolution"] if pair.endswith("ldm") else [])]
    for key in ("steps", "batch_size", "precision", "rank", "learning_rate", "max_length", "betas", "resolution"):
        for line in (line for line in lines if line.startswith(f"{key} =")):
            mark = line.partition(" # ")[2]
            assert mark.startswith("recalled" if key in recalled else ("code", "slides")), line
