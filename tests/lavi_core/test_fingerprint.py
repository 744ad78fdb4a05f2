"""One print for copies of one model, another for another model."""

from __future__ import annotations

import pytest
import torch
from lavi_bridge.lavi_core import fingerprint
from lavi_bridge.lavi_core.language import TextEncoder


def test_a_cast_copy_has_the_same_print(language_folder):
    prints = {
        TextEncoder.load(language_folder("llama"), dtype=d).config.fingerprint
        for d in (None, torch.float16, torch.bfloat16)
    }
    assert len(prints) == 1


def test_underflow_keeps_the_print():
    tiny = torch.nn.Linear(8, 8)
    tiny.weight.data = tiny.weight.data * 1e-12
    assert fingerprint.weights_print(tiny) == fingerprint.weights_print(tiny.half())


def test_another_model_has_another_print(language_folder):
    encoder = TextEncoder.load(language_folder("llama"))
    before = encoder.config.fingerprint
    assert before != TextEncoder.load(language_folder("qwen2")).config.fingerprint
    weights = fingerprint.weights_print(encoder.model)
    weight = encoder.model.get_submodule("layers.1.self_attn.q_proj").weight
    weight.data += 0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    assert fingerprint.weights_print(encoder.model) != weights


def test_another_vocabulary_has_another_print(language_folder):
    tokenizer = TextEncoder.load(language_folder("llama")).tokenizer
    before = fingerprint.vocabulary_print(tokenizer)
    tokenizer.add_tokens(["<new>"])
    assert fingerprint.vocabulary_print(tokenizer) != before


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_neither_names_nor_order_matter(order):
    torch.manual_seed(0)
    layers = [torch.nn.Linear(4, 6), torch.nn.Conv2d(6, 4, 1)]
    expected = fingerprint.weights_print(torch.nn.Sequential(*layers))
    other = torch.nn.ModuleDict({f"x{i}": layers[i] for i in order})
    layers[1].weight.data = layers[1].weight.data.reshape(4, 6)
    assert fingerprint.weights_print(other) == expected
