"""A language model that was changed is told from the one that a bridge was trained with; a copy of it is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lavi_bridge.lavi_core.bridge import check_language
from lavi_bridge.lavi_core.config import from_dict
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.lavi_core.language.facts import config_facts, differing
from safetensors.torch import load_file, save_file

from .gguf_files import write_llama


def edited_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def another_theta(folder: Path) -> None:
    edited_config(folder, rope_parameters={"rope_type": "default", "rope_theta": 50.0}, rope_theta=50.0)


def without_post_processor(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": None}))


def scaled(pattern: str, factor: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        state = {k: t * factor if pattern in k else t for k, t in load_file(path).items()}
        save_file(state, path, {"format": "pt"})

    return change


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "rope_theta": (another_theta, r"\(rope_theta 10000.0\).*\(rope_theta 50.0\)"),
    "no begin and end": (without_post_processor, "tokens"),
    "norms": (scaled("norm", 1.3), "size of a weight"),
    "projections": (scaled("q_proj", 1.5), "size of a weight"),
    "epsilon": (lambda folder: edited_config(folder, rms_norm_eps=1e-2), "norm epsilon"),
    "activation": (
        lambda folder: edited_config(folder, hidden_act="gelu"),
        r"activation silu\).*activation gelu\)",
    ),
}


@pytest.fixture
def copied(language_folder, tmp_path: Path) -> Path:
    return Path(shutil.copytree(language_folder("llama"), tmp_path / "copy"))


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_is_refused(language_folder, copied: Path, change: str):
    make, message = CHANGES[change]
    trained = TextEncoder.load(language_folder("llama")).config
    make(copied)
    for changed in (TextEncoder.load(copied).config, TextEncoder.skeleton(copied).config):
        assert changed.fingerprint == trained.fingerprint  # which does not see it
        with pytest.raises(ValueError, match=message):
            check_language(trained, changed)
        check_language(trained, changed, allow_other_model=True)
        check_language(replace(trained, facts=None), changed)  # of a bridge that records no facts


def test_copies_are_the_same_model(language_folder, tmp_path: Path):
    folder = language_folder("llama")
    trained = TextEncoder.load(folder).config
    for dtype in (torch.float16, torch.bfloat16):
        check_language(trained, TextEncoder.load(folder, dtype=dtype).config)
    for how in ("8-bit", "4-bit"):
        check_language(trained, TextEncoder.load(folder, weights=how).config)
    stored = {
        k: t.to(torch.float8_e4m3fn) if t.ndim > 1 else t for k, t in load_file(folder / "model.safetensors").items()
    }
    copy = Path(shutil.copytree(folder, tmp_path / "fp8"))
    save_file(stored, copy / "model.safetensors", {"format": "pt"})
    check_language(trained, TextEncoder.load(copy, dtype=torch.float32).config)
    blocks = TextEncoder.skeleton(write_llama(tmp_path / "q8.gguf", folder, "Q8_0")).config.facts or {}
    assert differing(trained.facts, {key: value for key, value in blocks.items() if key != "tokens"}) is None


@pytest.mark.parametrize("kind", ["t5", "bert", "clip", "gpt2", "qwen2", "roberta"])
def test_facts_are_read_without_the_weights(language_folder, kind: str):
    skeleton, whole = TextEncoder.skeleton(language_folder(kind)).config, TextEncoder.load(language_folder(kind)).config
    assert skeleton.facts == whole.facts and whole.facts
    assert from_dict(type(whole), json.loads(json.dumps(whole.__dict__))) == whole


def test_both_ways_of_writing_rotary_positions_are_one():
    class Old:
        rope_theta = 1e4
        rope_scaling = {"type": "linear", "factor": 4.0}  # noqa: RUF012

    class New:
        rope_parameters = {"rope_theta": 1e4, "rope_type": "linear", "factor": 4.0}  # noqa: RUF012

    assert config_facts(Old()) == config_facts(New()) == {"rope_theta": 1e4, "rope_type": "linear", "factor": 4.0}


def test_rotation_by_kind_of_layer_is_read_beside_what_a_flat_config_left_there():
    from transformers import Gemma3TextConfig

    config = Gemma3TextConfig(rope_parameters={"rope_theta": 5e4, "rope_type": "default"})
    kinds = [fact for fact in config_facts(config) if fact.startswith("rope_theta")]
    assert kinds == ["rope_theta of full_attention", "rope_theta of sliding_attention"]
    assert differing({"factor": 4.0, "heads": 4}, {"factor": 8.0}) == ("factor", 4.0, 8.0)
