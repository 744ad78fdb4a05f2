"""Tables that a model computes for itself, in half precision: as transformers has them, and exact where they may be."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.lavi_core.prompt import PromptRecipe
from torch import nn

from .tiny_families import tiny_folders

RECIPE = PromptRecipe(max_length=20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folders(tmp_path_factory)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["m2m_100", "xglm", "nllb-moe", "openai-gpt"])
def test_half_precision_is_transformers_own(kind, stream, folder):
    encoder = TextEncoder.load(folder(kind), dtype=torch.bfloat16, stream=stream)
    golden = hf.AutoModel.from_pretrained(folder(kind), dtype=torch.bfloat16).eval()
    golden = golden.get_encoder() if golden.config.is_encoder_decoder else golden
    tokens = encoder.tokenize(["a red circle"], RECIPE)
    with torch.no_grad():
        expected = golden(input_ids=tokens.ids, attention_mask=tokens.mask.long()).last_hidden_state
        found = encoder(tokens, RECIPE).states
    assert found.dtype == torch.bfloat16 and torch.equal(found, expected)


@pytest.mark.parametrize("kind", ["gptj", "codegen"])
def test_tables_that_are_taken_as_they_are_stay_exact(kind, folder):
    encoder = TextEncoder.load(folder(kind), dtype=torch.bfloat16)
    tables = [t for name, t in encoder.model.named_buffers() if name.endswith("embed_positions")]
    assert tables and all(t.dtype == torch.float32 and t.ndim == 2 for t in tables)


def test_a_model_that_does_not_run_either_way_is_left_as_it_was():
    from lavi_bridge.lavi_core.language.buffers import fit_tables

    model = nn.Module()
    model.register_buffer("table", torch.ones(2, 2), persistent=False)
    seen: list[torch.dtype] = []

    def run() -> None:
        seen.append(model.get_buffer("table").dtype)
        raise RuntimeError

    fit_tables(model, torch.float16, run)
    assert seen == [torch.float32, torch.float16] and model.get_buffer("table").dtype == torch.float32
    fit_tables(model, torch.float16, lambda: None)
    assert model.get_buffer("table").dtype == torch.float32


def test_layers_that_give_lists(folder):
    """OpenAI's GPT: the mean over its layers' outputs, layer-normalised, and the last of them."""
    encoder = TextEncoder.load(folder("openai-gpt"))
    tokens = encoder.tokenize(["a red circle"], RECIPE)
    with torch.no_grad():
        own = encoder.model(tokens.ids, attention_mask=tokens.mask.long(), output_hidden_states=True).hidden_states
        mean = torch.stack([nn.functional.layer_norm(h, h.shape[-1:]) for h in own[1:]]).mean(0)
        for which, expected in (("normalized_mean", mean), ("last_before_norm", own[-1])):
            recipe = PromptRecipe(max_length=20, hidden_states=which)
            assert torch.allclose(encoder(tokens, recipe).states, expected, atol=1e-6)
