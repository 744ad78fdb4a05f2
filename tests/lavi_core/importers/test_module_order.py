"""The order of nameless LoRA lists against what the old libraries do, at the true sizes of the paper's models."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers as hf
from lavi_bridge.lavi_core.importers.module_order import LANGUAGE_ORDERS, VISION_ORDERS, in_order
from lavi_bridge.lavi_core.language.encoder import TextEncoder
from lavi_bridge.lavi_core.language.families import family_of
from lavi_bridge.lavi_core.vision import VISION_TARGETS, target_of

ORDERS = Path(__file__).resolve().parents[2] / "golden" / "orders"
TRUE_SIZES = {
    "t5-large": hf.T5Config(d_model=1024, d_kv=64, d_ff=4096, num_layers=24, num_heads=16, vocab_size=32128),
    "llama-2-7b": hf.LlamaConfig(),
    "clip-vit-large-patch14": hf.CLIPTextConfig(
        hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072
    ),
    "bert-base": hf.BertConfig(),
}
UNETS: dict[str, dict[str, Any]] = {
    "stable-diffusion-v1-4": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "ldm-text2im-large-256": {"cross_attention_dim": 1280, "attention_head_dim": 8, "sample_size": 32},
    "attention-everywhere": {
        "cross_attention_dim": 40,
        "attention_head_dim": 4,
        "block_out_channels": (32, 64, 64),
        "norm_num_groups": 8,
        "transformer_layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    },
}
PIXART: dict[str, Any] = {
    "attention_head_dim": 72,
    "caption_channels": 4096,
    "cross_attention_dim": 1152,
    "num_attention_heads": 16,
    "num_layers": 28,
    "out_channels": 8,
    "sample_size": 64,
}


def recorded(name, prefix=""):
    """What the old libraries' traversal met; ``prefix`` is that of the larger model that it was run on."""
    name = "stable-diffusion-v1-4" if name == "ldm-text2im-large-256" else name
    return [line.removeprefix(prefix) for line in (ORDERS / f"{name}.txt").read_text().split()]


class Words:
    """As much of a tokenizer as a fingerprint needs."""

    def get_vocab(self):
        return {"a": 0}

    def __call__(self, text):
        return {"input_ids": [0]}


def language_sites(config):
    family = family_of(config.model_type)
    loader = getattr(hf, family.loader)
    with torch.device("meta"):
        model = loader.from_config(config) if hasattr(loader, "from_config") else loader(config)
    model = getattr(model, "text_model", model)
    encoder = TextEncoder(model, Words(), family, "tiny", weights_print=lambda: (None, None))
    return family.name, encoder.lora_sites()


@pytest.mark.parametrize(("name", "count"), [("t5-large", 96), ("llama-2-7b", 128), ("clip-vit-large-patch14", 48)])
def test_language_models_of_true_size_have_the_paper_s_sites(name, count):
    family, sites = language_sites(TRUE_SIZES[name])
    assert len(sites) == count
    prefix = {"llama": "model.", "clip": "text_model."}.get(family, "")
    assert in_order(shuffled(sites), LANGUAGE_ORDERS[family]) == recorded(name, prefix)


def test_bert_is_in_its_order():
    family, sites = language_sites(TRUE_SIZES["bert-base"])
    assert in_order(shuffled(sites), LANGUAGE_ORDERS[family]) == recorded("bert-base")


@pytest.mark.parametrize("name", ["stable-diffusion-v1-4", "ldm-text2im-large-256"])
def test_unets_of_true_size_have_the_paper_s_sites(name):
    assert len(unet_sites(name)) == 224
    assert in_order(shuffled(unet_sites(name)), VISION_ORDERS["UNet2DConditionModel"]) == recorded(name)


def test_a_unet_with_attention_in_every_block_is_in_its_order():
    sites = unet_sites("attention-everywhere")
    assert in_order(shuffled(sites), VISION_ORDERS["UNet2DConditionModel"]) == recorded("attention-everywhere")


def test_pixart_of_true_size_has_the_paper_s_sites():
    with torch.device("meta"):
        model = diffusers.PixArtTransformer2DModel(**PIXART)
    sites = VISION_TARGETS["pixart"].sites(model)
    assert len(sites) == 224
    assert in_order(shuffled(sites), VISION_ORDERS["PixArtTransformer2DModel"]) == recorded("pixart-xl-2-512x512")


def unet_sites(name):
    with torch.device("meta"):
        model = diffusers.UNet2DConditionModel(**UNETS[name])
    return target_of({"_class_name": type(model).__name__, **model.config}).sites(model)


def shuffled(sites):
    """The installed libraries' own order must not matter."""
    sites = list(sites)
    random.Random(0).shuffle(sites)
    return sites


def test_list_entries_are_counted_not_spelled():
    paths = ["layers.10.self_attn.q_proj", "layers.9.self_attn.v_proj", "layers.9.self_attn.k_proj"]
    assert in_order(paths, LANGUAGE_ORDERS["llama"]) == [paths[2], paths[1], paths[0]]


def test_what_has_no_stated_place_is_refused():
    with pytest.raises(ValueError, match=r"where mlp of layers\.0\.mlp\.gate_proj stands .* is not known"):
        in_order(["layers.0.self_attn.q_proj", "layers.0.mlp.gate_proj"], LANGUAGE_ORDERS["llama"])
    with pytest.raises(
        ValueError, match="unknown language family in the authors' LoRA lists 'generic'; known: t5, clip"
    ):
        LANGUAGE_ORDERS["generic"]
