"""Folders that transformers 5 has saved, under the releases before it; tokenizers that it rebuilds."""

from __future__ import annotations

import importlib
import json
import shutil
from types import SimpleNamespace

import pytest
from lavi_bridge.lavi_core.language import folder as folder_
from lavi_bridge.lavi_core.language.folder import _check_rotation, _tokenizer_loader, load_tokenizer, read_config

GEMMA = {"full_attention": 1e6, "sliding_attention": 1e4}


@pytest.fixture
def before_five(monkeypatch):
    monkeypatch.setattr(folder_, "version", lambda _: (4, 57))


def rotation(theta, kind="default"):
    return {"rope_theta": theta, "rope_type": kind}


def test_rotary_positions_that_are_read_as_they_are(before_five, tmp_path):
    config = SimpleNamespace(rope_theta=1e6, rope_local_base_freq=1e4)
    _check_rotation(tmp_path, None, config)
    _check_rotation(tmp_path, rotation(1e6), config)
    _check_rotation(tmp_path, {layers: rotation(theta) for layers, theta in GEMMA.items()}, config)


@pytest.mark.parametrize(
    "saved",
    [
        rotation(5e5),
        rotation(1e6, "llama3"),
        rotation(1e6) | {"factor": 8.0},
        {layers: rotation(1e6) for layers in GEMMA},
    ],
)
def test_rotary_positions_that_would_be_lost(before_five, tmp_path, saved):
    config = SimpleNamespace(rope_theta=1e6, rope_local_base_freq=1e4)
    with pytest.raises(ValueError, match=r"rotary positions.*would take.*update transformers"):
        _check_rotation(tmp_path, saved, config)


def test_transformers_5_reads_what_it_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_, "version", lambda _: (5, 23))
    _check_rotation(tmp_path, rotation(5e5, "llama3"), SimpleNamespace())


@pytest.mark.parametrize(
    ("saved", "loader"), [("TokenizersBackend", "PreTrainedTokenizerFast"), ("BertTokenizer", "AutoTokenizer")]
)
def test_a_tokenizer_saved_by_transformers_5(before_five, language_folder, tmp_path, saved, loader):
    """Its class has another name in the releases before; AutoTokenizer there knows none of that name."""
    target = tmp_path / "model"
    shutil.copytree(language_folder("bert"), target)
    config = target / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tokenizer_class": saved}))
    read = read_config(target)
    assert _tokenizer_loader(target, read)[0] is getattr(importlib.import_module("transformers"), loader)
    assert load_tokenizer(target, read)("red")["input_ids"]


@pytest.mark.parametrize("layout", ["one folder", "diffusers"])
def test_a_tokenizer_json_is_read_as_it_is(tmp_path, layout):
    """Granite and OLMo 2 split by rules of their own and name GPT-2's class, of which transformers 5 takes the rules
    unless it sees the model's config."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    core = Tokenizer(models.WordLevel({"[UNK]": 0, "a red": 1, "cat": 2}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Split(",", "removed")  # type: ignore[assignment]
    folder = tmp_path / "text_encoder"
    words = folder if layout == "one folder" else tmp_path / "tokenizer"
    for made in {folder, words}:
        made.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "granite"}))
    core.save(str(words / "tokenizer.json"))
    (words / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    assert load_tokenizer(folder, read_config(folder))("a red,cat")["input_ids"] == [1, 2]
