"""Frozen records: unknown keys refused by their path, JSON there and back."""

from __future__ import annotations

import dataclasses
import json

import pytest
from lavi_bridge.lavi_core.config import BridgeConfig, from_dict
from lavi_bridge.lavi_core.prompt import PromptRecipe


def plain(**changes):
    data = {
        "language": {
            "model_id": "t5-large",
            "family": "t5",
            "hidden_size": 1024,
            "num_layers": 24,
            "vocab_size": 32128,
            "fingerprint": "0",
        },
        "prompt": {"max_length": 77, "hidden_states": -2},
        "adapter": {"kind": "mlp", "in_width": 1024, "inner_width": 896, "out_width": 768},
        "vision": {
            "model_id": "sd",
            "target": "sd1",
            "context_width": 768,
            "objective": "epsilon",
            "latent_channels": 4,
            "latent_scale": 0.18215,
            "fingerprint": "0",
        },
        "language_lora": {"rank": 32, "alpha": 32},
        "provenance": {"steps": 50000, "note": ["any", {"thing": None}]},
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        inner = data
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    return data


def test_json_there_and_back():
    config = from_dict(BridgeConfig, plain())
    assert config.prompt == PromptRecipe(max_length=77, hidden_states=-2)
    assert config.language_lora.alpha == 32.0 and isinstance(config.language_lora.alpha, float)
    assert from_dict(BridgeConfig, json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.parametrize(
    "change",
    [
        {"prompt__hidden_states": [9, 18, 27], "adapter__in_width": 3072},
        {"prompt__hidden_states": "learned_mean", "adapter__layers": 24},
        {"adapter__kind": "resampler", "adapter__tokens": 77, "adapter__outer_norms": False},
    ],
)
def test_several_layers_and_options_of_adapters_there_and_back(change):
    config = from_dict(BridgeConfig, plain(**change))
    assert from_dict(BridgeConfig, json.loads(json.dumps(dataclasses.asdict(config)))) == config
    assert hash(config.prompt) and config.adapter.state_width == config.adapter.in_width * (config.adapter.layers or 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"prompt__lenght": 7},
            r"unknown key prompt.lenght \(did you mean prompt.max_length\?\); known here: template,",
        ),
        ({"colour": 7}, "unknown key colour; known here: language, prompt"),
        ({"prompt__max_length": "77"}, "prompt.max_length = '77'; it must be of type int"),
        ({"prompt__max_length": 77.5}, "prompt.max_length = 77.5; it must be of type int"),
        ({"prompt__max_length": True}, "prompt.max_length = True; it must be of type int"),
        ({"prompt__padding": "left"}, "prompt.padding = 'left'; it must be one of 'max_length', 'longest'"),
        ({"prompt__hidden_states": "first"}, "prompt.hidden_states = 'first' fits none of its types"),
        ({"prompt__hidden_states": True}, "prompt.hidden_states = True fits none of its types"),
        ({"prompt__template": "no place"}, r"a prompt template holds \{prompt\} exactly once"),
        ({"prompt__max_length": 0}, "max_length must be at least 1 token"),
        ({"vision__objective": "x0"}, "vision.objective = 'x0'; it must be one of"),
        ({"language": 3}, "language = 3; it must be a table"),
        ({"schema": 6}, "this bridge has schema 6, this version reads up to 5; update the pack"),
        ({"adapter__in_width": 512}, "the adapter takes width 512, the language model t5-large gives 1024"),
        ({"adapter__out_width": 512}, "the adapter gives width 512, the vision model sd takes 768"),
        ({"prompt__hidden_states": []}, "hidden_states is an empty list"),
        ({"prompt__hidden_states": ["last"]}, "prompt.hidden_states = \\['last'\\] fits none of its types"),
        ({"prompt__hidden_states": [9, 18]}, "the adapter takes width 1024, the language model t5-large gives 2048"),
        (
            {"prompt__hidden_states": "learned_mean"},
            "takes no layers for a learned mean, the prompt recipe hands",
        ),
        ({"adapter__layers": 24}, "takes 24 layers for a learned mean, the prompt recipe hands it none"),
        ({"adapter__heads": "8"}, "adapter.heads = '8'; it must be of type int"),
    ],
)
def test_refusals(change, message):
    with pytest.raises(ValueError, match=message):
        from_dict(BridgeConfig, plain(**change))


def test_a_missing_key():
    data = plain()
    del data["vision"]["target"]
    with pytest.raises(ValueError, match=r"missing key vision.target \(VisionConfig\)"):
        from_dict(BridgeConfig, data)


def test_braces_in_a_prompt_mean_nothing():
    recipe = PromptRecipe(template="x {prompt} y")
    assert recipe.render("{a} {prompt}") == "x {a} {prompt} y"
