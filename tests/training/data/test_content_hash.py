"""The bytes of a language model's files tell its text states from another's, and are hashed once."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from lavi_bridge.lavi_core.files import read_safetensors, write_safetensors
from lavi_bridge.training.data.content_hash import NAME, content_hash
from lavi_bridge.training.loop.trainer import Trainer
from lavi_bridge.training.recipe import read_recipe

pytestmark = pytest.mark.usefixtures("on_cpu")


def test_a_hash_is_kept_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, store = tmp_path / "a", tmp_path / "cache"
    file.write_bytes(b"one")
    first = content_hash([file], store)
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("it was read again"))
        assert content_hash([file], store) == first
    file.write_bytes(b"three")
    assert content_hash([file], store) != first
    (store / NAME).write_text("no table")
    assert content_hash([file], store) != first and json.loads((store / NAME).read_text())


def test_a_language_model_with_scaled_norms_has_states_of_its_own(recipe: Path, tiny: Path, tmp_path: Path) -> None:
    """Which its fingerprint of signs does not see."""
    scaled, cache = tmp_path / "scaled", tmp_path / "cache"
    shutil.copytree(tiny / "text_encoder", scaled)
    weights = read_safetensors(scaled / "model.safetensors")
    write_safetensors(
        scaled / "model.safetensors",
        {key: t * 1.3 if "LayerNorm.weight" in key else t for key, t in weights.items()},
        {"format": "pt"},
    )
    losses = {}
    for name, folder in (("first", tiny / "text_encoder"), ("again", tiny / "text_encoder"), ("scaled", scaled)):
        changes = ['language.train="frozen"', f"language.model={json.dumps(str(folder))}", "steps=2"]
        changes += [f"data.cache={json.dumps(str(cache))}", f"output={json.dumps(str(tmp_path / name))}"]
        output = Trainer(read_recipe(recipe, changes)).run().parent
        losses[name] = [line for line in (output / "log.jsonl").read_text().splitlines() if '"loss"' in line]
        losses[name] = [json.loads(line)["loss"] for line in losses[name]]
    assert losses["first"] == losses["again"] != losses["scaled"]
    assert len(list(cache.glob("states-*"))) == 2
