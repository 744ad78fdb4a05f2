"""``lavi-bridge install-demo``: the demo's models under the names that workflows/demo.json uses."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..models import named

NAMES = {
    "lavi_bridges/lavi_demo_bridge.safetensors": "minilm.safetensors",
    "lavi_bridges/lavi_demo_bridge_smollm2.safetensors": "smollm2.safetensors",
    "vae/lavi_demo_vae.safetensors": "vae.safetensors",
    "diffusers/lavi_demo_vision/unet": "vision/unet",
    "diffusers/lavi_demo_vision/scheduler": "vision/scheduler",
}
LANGUAGE = "LLM/lavi_demo_language"


def install(comfyui: str | Path) -> list[Path]:
    """Copy the demo into ``comfyui``/models; files of those names are replaced. Returns what was written."""
    target = Path(comfyui) / "models"
    if not target.is_dir():
        raise ValueError(f"{comfyui} is no ComfyUI folder: it has no models/ in it")
    written = []
    pairs = {target / name: named.WEIGHTS / source for name, source in NAMES.items()}
    pairs[target / LANGUAGE] = named.language("demo:minilm")
    for place, source in pairs.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            _copy_folder(source, place)
        else:
            _copy_file(source, place)
        written.append(place)
    return written


def _copy_folder(source: Path, place: Path) -> None:
    if place.is_symlink():
        place.unlink()
    shutil.copytree(source, place, dirs_exist_ok=True, copy_function=_copy_file)


def _copy_file(source: str | Path, place: str | Path) -> None:
    """A link at ``place`` is replaced: what it leads to may belong to someone else."""
    if Path(place).is_symlink():
        Path(place).unlink()
    shutil.copy(source, place)
