"""A diffusers folder: where its network lies, what its configs say, its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.utils
from safetensors import SafetensorError

from .. import folders

NETWORKS = ("unet", "transformer")  # the parts of a pipeline folder that hold a denoising network
# A network's one file, and the list of its shards.
WEIGHTS = {
    "diffusion_pytorch_model.safetensors": "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.fp16.safetensors": "diffusion_pytorch_model.safetensors.index.fp16.json",
}


def network(folder: Path) -> Path:
    """The folder of the network itself: ``unet/`` or ``transformer/`` of a pipeline folder, or the folder given."""
    parts = [folder / name for name in NETWORKS if (folder / name / "config.json").is_file()]
    return parts[0] if parts else folder


def is_vision_model(path: Path) -> bool:
    """Whether a row of the core tells the network in this folder."""
    from ...lavi_core.vision import target_of

    try:
        target_of(folders.read_json(network(path) / "config.json"))
    except ValueError:
        return False
    return True


def configs(folder: Path) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """The network's config, its scheduler's, and the core's row for it. Raises ValueError where one is not known."""
    from ...lavi_core.vision import target_of

    file = network(folder) / "config.json"
    config = folders.read_json(file)
    if not config:
        inside = [folder / name for name in NETWORKS if (folder / name).is_dir()]
        if not file.is_file() and inside:
            file = inside[0] / "config.json"
        raise ValueError(f"{file} is not there, or no whole JSON object: copy it again")
    row = target_of(config)
    pipeline = network(folder).parent
    scheduler = folders.read_json(pipeline / "scheduler" / "scheduler_config.json")
    if not scheduler:
        raise ValueError(
            f"{folder.name} has no scheduler/scheduler_config.json, so what its network predicts is not known; "
            f"put it into {pipeline / 'scheduler'}"
        )
    return config, scheduler, row


def weights(folder: Path) -> dict[str, Any]:
    """The network's weights, of one file or of shards, under diffusers' names, still on disk as far as the host maps
    files."""
    for name, index in WEIGHTS.items():
        if (folder / name).is_file():
            return _read(folder / name)
        if shards := folders.read_json(folder / index).get("weight_map"):
            return _read_shards(folder, shards)
    raise ValueError(f"{folder} has neither {' nor '.join(WEIGHTS)}, whole or in shards; other formats are not read")


def _read(path: Path) -> dict[str, Any]:
    try:
        return comfy.utils.load_torch_file(str(path), safe_load=True)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}): copy it again") from error


def _read_shards(folder: Path, shards: dict[str, str]) -> dict[str, Any]:
    """shards: name of a weight -> the file in ``folder`` that has it."""
    names = sorted(set(shards.values()))
    missing = [name for name in names if not (folder / Path(name).name).is_file()]
    if missing:
        raise ValueError(f"{folder} has {len(names) - len(missing)} of {len(names)} shards: {missing[0]} is missing")
    state: dict[str, Any] = {}
    for name in names:
        state |= _read(folder / Path(name).name)
    return state


def demand(config: dict[str, Any], only: dict[str, Any], what: str) -> None:
    """Refuse a config in which a key has another value than the host's network is built for."""
    for key, value in only.items():
        if config.get(key, value) != value:
            raise ValueError(f"this {what} has {key} = {config[key]!r} and ComfyUI's knows {value!r} only")
