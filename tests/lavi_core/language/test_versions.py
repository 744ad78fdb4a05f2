"""Folders that transformers 5 has saved, under the releases before it."""

from __future__ import annotations

import importlib
import json
import shutil
from types import SimpleNamespace

import pytest
from lavi_bridge.lavi_core.language import folder as folder_
from lavi_bridge.lavi_core.language.folder import _check_rotation, _tokenizer_loader, load_tokenizer

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
    assert _tokenizer_loader(target) is getattr(importlib.import_module("transformers"), loader)
    assert load_tokenizer(target)("red")["input_ids"]
