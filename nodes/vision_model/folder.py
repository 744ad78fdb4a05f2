"""A diffusers folder: where its network lies, what its configs say, its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.utils
from safetensors import SafetensorError

from .. import folders

NETWORKS = ("unet", "transformer")  # the parts of a pipeline folder that hold a denoising network
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")


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

    config = folders.read_json(network(folder) / "config.json")
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
    """The network's weights, under diffusers' names, still on disk as far as the host maps files."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            try:
                return comfy.utils.load_torch_file(str(folder / name), safe_load=True)
            except (SafetensorError, ValueError) as error:
                raise ValueError(f"{folder / name} cannot be read ({error}): copy it again") from error
    raise ValueError(f"{folder} has neither {' nor '.join(WEIGHTS)}; other formats are not read")


def demand(config: dict[str, Any], only: dict[str, Any], what: str) -> None:
    """Refuse a config in which a key has another value than the host's network is built for."""
    for key, value in only.items():
        if config.get(key, value) != value:
            raise ValueError(f"this {what} has {key} = {config[key]!r} and ComfyUI's knows {value!r} only")
