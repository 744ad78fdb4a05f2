"""A streamed language model says the same to the bit, holds no weights, and takes a live LoRA."""

from __future__ import annotations

import pytest
import torch
from lavi_bridge.lavi_core import lora
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.lavi_core.lora import Delta
from lavi_bridge.lavi_core.prompt import PromptRecipe

PROMPTS = ["a red circle left of a blue square", ""]
RECIPES = [PromptRecipe(max_length=20, hidden_states=which) for which in ("last", 1, "normalized_mean")]


def say(encoder, recipe):
    with torch.no_grad():
        return encoder(encoder.tokenize(PROMPTS, recipe), recipe).states


@pytest.mark.parametrize("kind", ["t5", "clip", "bert", "llama"])
def test_the_same_states_and_no_weights_in_memory(language_folder, kind):
    folder = language_folder(kind)
    whole, streamed = TextEncoder.load(folder), TextEncoder.load(folder, stream=True)
    assert all(parameter.is_meta for parameter in streamed.parameters())
    assert streamed.config == whole.config  # the fingerprint too, from slices of the files
    for recipe in RECIPES:
        assert torch.equal(say(streamed, recipe), say(whole, recipe))
    assert all(parameter.is_meta for parameter in streamed.parameters())


def test_a_lora_is_live_or_refused(language_folder):
    folder = language_folder("llama")
    whole, streamed = TextEncoder.load(folder), TextEncoder.load(folder, stream=True)
    torch.manual_seed(0)
    deltas = {
        path: Delta(torch.randn(2, site.in_features), torch.randn(site.out_features, 2), 0.5)
        for path, site in ((path, whole.model.get_submodule(path)) for path in whole.lora_sites())
    }
    plain = say(whole, RECIPES[0])
    lora.attach(whole.model, deltas)
    lora.attach(streamed.model, deltas)
    assert torch.equal(say(streamed, RECIPES[0]), say(whole, RECIPES[0]))
    assert not torch.equal(say(streamed, RECIPES[0]), plain)
    with pytest.raises(ValueError, match="streamed from disk and take no merge; keep the LoRA live"):
        lora.merge(streamed.model, deltas)


def test_what_cannot_be_streamed(language_folder, tmp_path):
    with pytest.raises(ValueError, match="runs on the CPU, not on cuda"):
        TextEncoder.load(language_folder("bert"), device="cuda", stream=True)
    (tmp_path / "x.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    with pytest.raises(ValueError, match=r"x.gguf is one file, only a folder of safetensors can be streamed"):
        TextEncoder.load(tmp_path / "x.gguf", stream=True)
