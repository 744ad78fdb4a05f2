"""PEFT folders of many kinds: merged as peft merges them, or refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from lavi_bridge.lavi_core import lora
from lavi_bridge.lavi_core.language import TextEncoder

from .conftest import tiny_config, write_tokenizer

TARGETS = ["q_proj", "v_proj"]
IDS = torch.arange(5, 25)[None]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("llama"), transformers.LlamaForCausalLM, "llama")


def saved(folder: Path, kind: Any, name: str) -> Path:
    torch.manual_seed(0)
    model = kind(tiny_config(name, len(write_tokenizer(folder))))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    return folder


def adapted(base: Path, output: Path, loader: Any, **config: Any) -> Any:
    """peft's model with trained values in every part of the adapter, saved into ``output``."""
    model = peft.get_peft_model(loader.from_pretrained(base), peft.LoraConfig(r=4, lora_alpha=8, **config)).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(str(output))
    return model


def merged(base: Path, folder: Path) -> Any:
    encoder = TextEncoder.load(base)
    lora.merge(encoder.model, lora.rebase(encoder.model, lora.from_peft(folder)))
    return encoder


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"init_lora_weights": "pissa"}, "initialised by pissa"),
        ({"init_lora_weights": "pissa_niter_2"}, "initialised by pissa_niter_2"),
        ({"init_lora_weights": "olora"}, "initialised by olora"),
        ({"alora_invocation_tokens": [399, 398], "task_type": "CAUSAL_LM"}, "activated LoRA"),
        ({"layer_replication": [[1, 3], [0, 2]]}, "repeats layers"),
        ({"use_dora": True}, "is a DoRA"),
        ({"lora_bias": True}, "trained biases"),
        ({"trainable_token_indices": {"embed_tokens": [5]}}, "trained embeddings"),
    ],
)
def test_what_is_no_plain_delta_is_refused(llama: Path, tmp_path: Path, config: dict, message: str):
    adapted(llama, tmp_path, transformers.AutoModelForCausalLM, target_modules=TARGETS, **config)
    with pytest.raises(ValueError, match=message):
        lora.from_peft(tmp_path)


def test_a_field_of_tomorrow_is_named(llama: Path, tmp_path: Path):
    import json

    adapted(llama, tmp_path, transformers.AutoModelForCausalLM, target_modules=TARGETS)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_tomorrow": True, "use_yesterday": False}))
    with pytest.raises(ValueError, match="sets use_tomorrow = True, which is not known here"):
        lora.from_peft(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_rslora": True},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "mica"},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
        # Two that match: saved with sorted keys, the other one is first when it is loaded.
        {"alpha_pattern": {"q_proj": 16, r"layers.0.self_attn.q_proj": 64}},
        {"layers_to_transform": [1], "layers_pattern": "layers"},
    ],
)
def test_a_plain_delta_is_what_peft_loads(llama: Path, tmp_path: Path, config: dict):
    adapted(llama, tmp_path, transformers.AutoModelForCausalLM, target_modules=TARGETS, **config)
    loaded: Any = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(llama), tmp_path
    ).eval()
    with torch.no_grad():
        expected = loaded.get_base_model().model(input_ids=IDS).last_hidden_state
        torch.testing.assert_close(
            merged(llama, tmp_path).model(input_ids=IDS).last_hidden_state, expected, rtol=1e-5, atol=1e-5
        )


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("bart"), transformers.BartForConditionalGeneration, "bart")


def test_a_decoders_lora_is_not_for_the_encoder(bart: Path, tmp_path: Path):
    adapted(bart, tmp_path, transformers.AutoModelForSeq2SeqLM, target_modules=r".*decoder.*self_attn\.(q|v)_proj")
    with pytest.raises(ValueError, match=r"adapts no part of BartEncoder, its first delta is for model\.decoder"):
        merged(bart, tmp_path)


def test_of_a_lora_over_both_halves_the_encoders_is_taken(bart: Path, tmp_path: Path, caplog):
    model = adapted(bart, tmp_path, transformers.AutoModelForSeq2SeqLM, target_modules=TARGETS)
    encoder = merged(bart, tmp_path)
    assert "deltas of the LoRA are of no use here, being of decoder" in caplog.text
    with torch.no_grad():
        expected = model.get_base_model().model.encoder(input_ids=IDS).last_hidden_state
        torch.testing.assert_close(encoder.model(input_ids=IDS).last_hidden_state, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("head", ["lm_head", "score"])
def test_a_head_is_left_out(llama: Path, tmp_path: Path, caplog, head: str):
    if head == "score":
        loader, config = transformers.AutoModelForSequenceClassification, {"task_type": "SEQ_CLS"}
    else:
        loader, config = transformers.AutoModelForCausalLM, {}
    targets = TARGETS if head == "score" else [*TARGETS, head]
    model = adapted(llama, tmp_path, loader, target_modules=targets, **config)
    encoder = merged(llama, tmp_path)
    assert head in caplog.text
    with torch.no_grad():
        expected = model.get_base_model().model(input_ids=IDS).last_hidden_state
        torch.testing.assert_close(encoder.model(input_ids=IDS).last_hidden_state, expected, rtol=1e-5, atol=1e-5)
