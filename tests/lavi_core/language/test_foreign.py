"""Models that do not read text alone are refused in one sentence, at loading or at the first use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.lavi_core.language.foreign import told_plainly

from ..conftest import write_tokenizer
from .examination import PROMPTS, states
from .tiny_families import tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str], Path]:
    def make(model_type: str) -> Path:
        made = tmp_path / model_type
        size = len(write_tokenizer(made))
        tiny_model(model_type, size).save_pretrained(made)
        return made

    return make


def test_a_model_of_sounds_is_not_loaded(folder):
    with pytest.raises(
        ValueError, match=r"wav2vec2 \(Wav2Vec2Model\) takes attention_mask, input_values, .*, not input_ids"
    ):
        TextEncoder.load(folder("wav2vec2"))


@pytest.mark.parametrize(
    "model_type, reason", [("bros", "You have to specify bbox"), ("dpr", "has no last_hidden_state")]
)
def test_one_that_wants_more_than_text_says_so_at_its_first_use(folder, model_type: str, reason: str):
    encoder = TextEncoder.load(folder(model_type))
    with pytest.raises(ValueError, match=reason):
        states(encoder, PROMPTS)


def test_a_dtype_that_a_layer_does_not_know(folder):
    encoder = TextEncoder.load(folder("fnet"), dtype=torch.bfloat16)
    with pytest.raises(
        ValueError, match=r"fnet does not run on token ids in bfloat16 \(RuntimeError: .*\); load it in"
    ):
        states(encoder, PROMPTS)


def test_errors_of_others_go_on_as_they_are():
    with pytest.raises(KeyError), told_plainly("any", torch.float32):
        raise KeyError("ours")
    with pytest.raises(torch.OutOfMemoryError), told_plainly("any", torch.float32):
        raise torch.OutOfMemoryError("memory")
    with pytest.raises(RuntimeError, match="allocate memory"), told_plainly("any", torch.float32):
        torch.empty(1 << 60)
