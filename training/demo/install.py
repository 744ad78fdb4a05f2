"""``lavi-bridge install-demo``: the demo's models under the names that workflows/demo.json uses."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors import safe_open

from ...lavi_core.files import write_safetensors
from ..models import named

NAMES = {
    "lavi_bridges/lavi_demo_bridge.safetensors": "minilm.safetensors",
    "lavi_bridges/lavi_demo_bridge_smollm2.safetensors": "smollm2.safetensors",
    "diffusers/lavi_demo_vision/unet": "vision/unet",
    "diffusers/lavi_demo_vision/scheduler": "vision/scheduler",
}
VAE = "vae/lavi_demo_vae.safetensors"
LANGUAGE = {"minilm": "LLM/lavi_demo_language", "smollm2": "LLM/SmolLM2-135M-Instruct.Q4_1.gguf"}
OF_COMFYUI = ("models", "main.py", "custom_nodes", "user")  # a new --base-directory has the last alone
# What ComfyUI's class of tiny autoencoders asks a file for beside its weights, and warns of where it is missing.
PLAIN = {"vae_scale": 1.0, "vae_shift": 0.0}


def install(comfyui: str | Path, second: bool = False) -> list[Path]:
    """Copy the demo into ``comfyui``/models; files of those names are replaced. Returns what was written.

    second: the language model of the demo's second bridge, SmolLM2, too.
    """
    target = Path(comfyui) / "models"
    if not any((Path(comfyui) / name).exists() for name in OF_COMFYUI):
        raise ValueError(
            f"{comfyui} is no folder of ComfyUI, for none of {', '.join(OF_COMFYUI)} is in it: name ComfyUI's own "
            "folder, or what it was started on with --base-directory"
        )
    written = []
    pairs = {target / name: named.WEIGHTS / source for name, source in NAMES.items()}
    models = LANGUAGE if second else {"minilm": LANGUAGE["minilm"]}
    pairs |= {target / place: named.language(f"demo:{name}") for name, place in models.items()}
    for place, source in pairs.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            _copy_folder(source, place)
        else:
            _copy_file(source, place)
        written.append(place)
    _write_vae(named.WEIGHTS / "vae.safetensors", target / VAE)
    return [*written, target / VAE]


def _write_vae(source: Path, place: Path) -> None:
    from safetensors.torch import load_file

    with safe_open(str(source), "pt") as file:
        metadata = file.metadata()
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_symlink():
        place.unlink()
    more = {name: torch.tensor(value) for name, value in PLAIN.items()}
    write_safetensors(place, {**load_file(str(source)), **more}, metadata)


def _copy_folder(source: Path, place: Path) -> None:
    if place.is_symlink():
        place.unlink()
    shutil.copytree(source, place, dirs_exist_ok=True, copy_function=_copy_file)


def _copy_file(source: str | Path, place: str | Path) -> None:
    """A link at ``place`` is replaced: what it leads to may belong to someone else."""
    if Path(place).is_symlink():
        Path(place).unlink()
    shutil.copy(source, place)
