"""A diffusers pipeline's folder: where the network lies in it, and what its config says; no weights are loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...lavi_core import fingerprint
from ...lavi_core.config import VisionConfig
from ...lavi_core.files import reading
from ...lavi_core.language.encoder import model_id
from ...lavi_core.vision import VisionTarget, latent_scale, target_of
from .objective import Objective

# What all of the authors' scripts train with, for a vision model whose folder does not say.
OBJECTIVE, LATENT_SCALE = "epsilon", 0.18215


def network_folder(folder: str | Path) -> Path:
    """The folder of the network in a pipeline folder. Raises ValueError where there is none."""
    for name in ("unet", "transformer"):
        if (Path(folder) / name / "config.json").is_file():
            return Path(folder) / name
    if Path(folder).is_file():
        raise ValueError(
            f"{folder} is a single file, a vision model is read from diffusers' folder of a whole pipeline: make one "
            "of it with from_single_file(file).save_pretrained(folder) of diffusers' pipeline class"
        )
    raise ValueError(
        f"no vision model in {folder}: it needs unet/config.json or transformer/config.json, as diffusers' folder of a "
        "whole pipeline has"
    )


def read_config(folder: str | Path) -> tuple[dict[str, Any], VisionTarget]:
    """The network's config.json in a pipeline folder, and the row that it tells."""
    path = network_folder(folder) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not readable as JSON ({error})") from None
    return config, target_of(config)


def network_class(row: VisionTarget) -> Any:
    """diffusers' class of a row. Raises ValueError where the installed diffusers is older than it."""
    import diffusers

    found = getattr(diffusers, row.diffusers_class, None)
    if found is None:
        raise ValueError(
            f"diffusers {diffusers.__version__} has no {row.diffusers_class}, which {row.name} needs: "
            "pip install -U diffusers"
        )
    return found


def check_weights(folder: Path) -> None:
    """Raise ValueError for a model folder without safetensors, which diffusers would say in several lines."""
    if not any(folder.glob("*.safetensors")):
        pickled = "only pickled weights, which can run code" if any(folder.glob("*.bin")) else "no weights"
        raise ValueError(f"{folder} holds {pickled}; save the model again with save_pretrained(folder) of diffusers")


def read_vision(folder: str | Path, pooled: int | None = None) -> tuple[nn.Module, VisionConfig]:
    """The diffusers network on the meta device, built from its config, and what a bridge records of it.

    folder: a pipeline's, or that of its network alone. pooled: the width of the pooled vector that it will be given;
    None = none, as the authors' adapters give. Raises ValueError for a network that no row knows, or one that takes
    another.
    """
    folder = Path(folder)
    part = folder if (folder / "config.json").is_file() else network_folder(folder)
    try:
        stored: dict[str, Any] = json.loads((part / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{part / 'config.json'} is not readable as JSON ({error})") from None
    row = target_of(stored)
    with torch.device("meta"):
        network: Any = network_class(row).from_config(stored)
    config = dict(network.config)
    takes = row.pooled_width(config)
    if takes is not None and pooled is None:
        raise ValueError(f"{part} ({row.name}) takes a pooled vector, which the adapter does not make")
    if takes != pooled:
        wanted = "none" if takes is None else f"one of width {takes}"
        raise ValueError(
            f"the adapter gives a pooled vector of width {pooled}, {part} ({row.name}) takes {wanted}: name another "
            "vision model"
        )
    scheduler = part.parent / "scheduler"
    said = (scheduler / "scheduler_config.json").is_file()
    scaled = row if row.latent_scale is not None else replace(row, latent_scale=LATENT_SCALE)
    return network, VisionConfig(
        model_id=stored.get("model_id", model_id(folder)),
        target=row.name,
        context_width=row.context_width(config),
        objective=Objective.load(scheduler, row).kind if said else OBJECTIVE,
        latent_channels=row.latent_channels(config),
        latent_scale=latent_scale(part, scaled),
        fingerprint=_fingerprint(network, part),
    )


def _fingerprint(network: nn.Module, folder: Path) -> str | None:
    """The network's fingerprint from its safetensors file or shards; None where it has none."""
    whole, index = (folder / f"diffusion_pytorch_model.safetensors{end}" for end in ("", ".index.json"))
    if whole.is_file():
        files = [whole]
    elif index.is_file():
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        files = [folder / name for name in sorted(set(names))]
    else:
        return None
    with reading(folder):
        return fingerprint.files_fingerprint(network, files)
