"""A prompt's states do not depend on its company, on what was trimmed, or on what was read before: or it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from lavi_bridge.lavi_core import lora
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.lavi_core.lora import Delta
from lavi_bridge.lavi_core.prompt import PromptRecipe

from ..conftest import write_tokenizer

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "original_max_position_embeddings": 32,
    "short_factor": [1.0, 1.5, 2.0, 2.5],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
}


def encoder(folder: Path, kind: str, **values: Any) -> TextEncoder:
    size, cls = len(write_tokenizer(folder)), getattr(hf, kind)
    torch.manual_seed(0)
    cls(cls.config_class(vocab_size=size, **{"pad_token_id": 0, **SIZES, **values})).save_pretrained(folder)
    return TextEncoder.load(folder)


def states(encoder: TextEncoder, recipe: PromptRecipe, *prompts: str) -> torch.Tensor:
    with torch.no_grad():
        found = encoder(encoder.tokenize(list(prompts), recipe), recipe)
    return found.states[0][found.mask[0]]


@pytest.mark.skipif(hf.__version__ < "5", reason="the config here is written for transformers 5")
def test_longrope_is_not_trimmed_and_not_padded_on_the_left(tmp_path: Path):
    model = encoder(tmp_path, "LlamaModel", num_key_value_heads=2, rope_parameters=LONGROPE)
    recipe = PromptRecipe(max_length=100, vision_mask=True)
    tokens = model.tokenize(["a red circle"], recipe)
    trimmed = tokens.trimmed(recipe)
    assert trimmed.ids.shape[1] < 32 and not model.may_trim(recipe)
    with torch.no_grad():
        a, b = model(trimmed, recipe), model(tokens, recipe)
    torch.testing.assert_close(a.states[a.mask], b.states[b.mask])
    left = PromptRecipe(max_length=100, padding_side="left")
    with pytest.raises(ValueError, match="in a batch of more than 32 tokens, max_length is 100"):
        states(model, left, "a red circle")
    short = PromptRecipe(max_length=30, vision_mask=True, padding_side="left")
    assert model.may_trim(short) and states(model, short, "a red circle").isfinite().all()


@pytest.mark.parametrize("kind", ["RobertaModel", "XLMRobertaModel", "CamembertModel"])
def test_positions_that_are_counted_from_another_padding_token_are_refused(kind: str, tmp_path: Path):
    model = encoder(tmp_path, kind, pad_token_id=1, bos_token_id=0)
    with pytest.raises(ValueError, match=r"counts its positions from the tokens that are not 1, padding is 0 here"):
        states(model, PromptRecipe(max_length=40, padding_side="left"), "a red circle")
    right = PromptRecipe(max_length=40, vision_mask=True)
    torch.testing.assert_close(
        states(model, right, "a red circle"),
        states(model, PromptRecipe(padding="longest", vision_mask=True), "a red circle"),
    )


def test_a_bigbird_of_blocks_takes_what_it_attends_to_in_full(tmp_path: Path):
    model = encoder(tmp_path, "BigBirdModel", block_size=8, num_random_blocks=1)
    with pytest.raises(ValueError, match=r"attends to blocks in a prompt of more than 56 tokens, .* max_length is 100"):
        states(model, PromptRecipe(max_length=100), "a red circle")
    recipe = PromptRecipe(max_length=56, vision_mask=True)
    before = states(model, recipe, "a red circle " * 20)
    states(model, PromptRecipe(max_length=8), "sea")
    torch.testing.assert_close(states(model, recipe, "a red circle " * 20), before)


def test_two_deltas_for_one_place_are_refused(tmp_path: Path):
    model = encoder(tmp_path, "LlamaModel", num_key_value_heads=4).model
    delta = Delta(torch.ones(1, 32), torch.ones(32, 1), 1.0)
    names = ("text_encoder.model.layers.0.self_attn.q_proj", "text_encoder_2.model.layers.0.self_attn.q_proj")
    with pytest.raises(ValueError, match=r"two deltas for layers\.0\.self_attn\.q_proj of LlamaModel"):
        lora.rebase(model, dict.fromkeys(names, delta))
    beside = {"thinker.model.layers.0.self_attn.q_proj": delta, "talker.model.layers.0.self_attn.q_proj": delta}
    assert list(lora.rebase(model, beside)) == ["layers.0.self_attn.q_proj"]


@pytest.mark.parametrize(
    ("config", "message"),
    [("{", "is damaged"), ("[]", "is damaged"), ('{"peft_type": "LORA"}', "is damaged"), ("", "is damaged")],
)
def test_a_broken_peft_folder_is_refused_in_a_sentence(config: str, message: str, tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text(config)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=message) as refused:
        lora.from_peft(tmp_path)
    assert len(str(refused.value).splitlines()) == 1
