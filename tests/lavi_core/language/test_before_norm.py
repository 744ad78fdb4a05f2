"""The last layer's output before the final norm: what Qwen-Image and Flux.2 take of their language models."""

from __future__ import annotations

import pytest
import torch
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.lavi_core.prompt import PromptRecipe

NORMS = {"llama": "norm", "qwen2": "norm", "t5": "encoder.final_layer_norm", "clip": "final_layer_norm", "gpt2": "ln_f"}


def states(encoder: TextEncoder, which: str) -> torch.Tensor:
    recipe = PromptRecipe(max_length=16, hidden_states=which)  # type: ignore[arg-type]
    with torch.no_grad():
        return encoder(encoder.tokenize(["a red circle"], recipe), recipe).states


@pytest.mark.parametrize("kind", NORMS)
def test_the_final_norm_of_it_is_the_last_hidden_state(language_folder, kind: str):
    encoder = TextEncoder.load(language_folder(kind))
    before, last = states(encoder, "last_before_norm"), states(encoder, "last")
    assert not torch.allclose(before, last, atol=1e-3)
    torch.testing.assert_close(encoder.model.get_submodule(NORMS[kind])(before), last, rtol=1e-5, atol=1e-5)


def test_a_model_without_one_gives_the_last(language_folder):
    encoder = TextEncoder.load(language_folder("bert"))
    assert torch.equal(states(encoder, "last_before_norm"), states(encoder, "last"))
