"""States that leave float16's range: refused with model, dtype and layer, and never remembered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lavi_bridge.lavi_core.bridge import check_finite
from lavi_bridge.lavi_core.conditioning import Conditioning
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.lavi_core.prompt import PromptRecipe

from ..conftest import tiny_config, write_tokenizer

RECIPE = PromptRecipe(max_length=12)


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose second layer's MLP gives numbers beyond float16."""
    import transformers

    folder = tmp_path_factory.mktemp("overflowing")
    vocabulary = len(write_tokenizer(folder))
    torch.manual_seed(0)
    model: Any = transformers.LlamaModel(tiny_config("llama", vocabulary))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
        model.layers[1].mlp.down_proj.weight.mul_(1e4)
    model.save_pretrained(folder)
    return folder


def states(folder: Path, dtype: torch.dtype, recipe: PromptRecipe = RECIPE):
    encoder = TextEncoder.load(folder, dtype=dtype)
    with torch.no_grad():
        return encoder(encoder.tokenize(["a red circle"], recipe), recipe)


def test_float16_is_refused_and_wider_dtypes_are_right(overflowing: Path):
    with pytest.raises(ValueError, match=r"in float16 are not finite from layer 1 on .* load it in bfloat16"):
        states(overflowing, torch.float16)
    for dtype in (torch.bfloat16, torch.float32):
        assert torch.isfinite(states(overflowing, dtype).states).all()


def test_an_earlier_layer_is_taken_as_it_is(overflowing: Path):
    """Nothing after it runs."""
    assert torch.isfinite(states(overflowing, torch.float16, PromptRecipe(max_length=12, hidden_states=1)).states).all()


def test_damaged_weights_are_told_from_a_narrow_dtype(overflowing: Path):
    encoder = TextEncoder.load(overflowing, dtype=torch.float32)
    encoder.model.layers[2].self_attn.q_proj.weight[0, 0] = torch.nan
    with (
        torch.no_grad(),
        pytest.raises(ValueError, match=r"from layer 2 on .*: its weights.* are damaged"),
    ):
        encoder(encoder.tokenize(["a red circle"], RECIPE), RECIPE)


def test_a_gradient_is_not_waited_for(overflowing: Path):
    """In training the loss is looked at, once a step."""
    encoder = TextEncoder.load(overflowing, dtype=torch.float16)
    assert not torch.isfinite(encoder(encoder.tokenize(["a red circle"], RECIPE), RECIPE).states).all()


def test_a_context_that_is_not_finite_is_refused():
    good = torch.zeros(1, 2, 3)
    check_finite(Conditioning(good))
    for broken in (Conditioning(good / 0), Conditioning(good, pooled=torch.full((1, 2), torch.inf))):
        with pytest.raises(ValueError, match="adapter gives is not finite"):
            check_finite(broken)
