"""``lavi-bridge import``: the authors' published weights as a bridge file."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..lavi_core import fingerprint
from ..lavi_core.config import VisionConfig, from_dict
from ..lavi_core.importers import read_released, released_prompt
from ..lavi_core.language import TextEncoder
from ..lavi_core.language.encoder import model_id
from ..lavi_core.prompt import PromptRecipe
from ..lavi_core.vision import latent_scale, target_of
from .files import reading
from .objective import Objective
from .recipe import toml_value
from .vision_model import network_folder

log = logging.getLogger(__name__)

# What all of the authors' scripts train with, for a vision model whose folder does not say.
OBJECTIVE, LATENT_SCALE = "epsilon", 0.18215


def import_released(args: argparse.Namespace) -> str:
    """Write the bridge file and return its path. Raises ValueError before anything is written."""
    folder = Path(args.released)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    encoder = TextEncoder.skeleton(args.language_model)
    network, vision = read_vision(args.vision_model)
    for side in (encoder.config, vision):
        if side.fingerprint is None:
            log.info("no safetensors weights of %s were read: its fingerprint is not recorded", side.model_id)
    prompt = changed(released_prompt(encoder, vision), args.prompt)
    made = {"imported": "the authors' released files", "folder": folder.resolve().name}
    checkpoint = read_released(folder, encoder, network, vision, prompt, made)
    checkpoint.config.provenance["sha256"] = _digests(folder)
    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(output)
    return str(output)


def read_vision(folder: str | Path) -> tuple[nn.Module, VisionConfig]:
    """The diffusers network on the meta device, built from its config, and what a bridge records of it.

    folder: a pipeline's, or that of its network alone. Raises ValueError for a network that no row knows, or one that
    takes a pooled vector, which the authors' adapter does not make.
    """
    import diffusers

    folder = Path(folder)
    part = folder if (folder / "config.json").is_file() else network_folder(folder)
    try:
        stored: dict[str, Any] = json.loads((part / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{part / 'config.json'} is not readable as JSON ({error})") from None
    row = target_of(stored)
    with torch.device("meta"):
        network: Any = getattr(diffusers, row.diffusers_class).from_config(stored)
    config = dict(network.config)
    if row.pooled_width(config) is not None:
        raise ValueError(f"{part} ({row.name}) takes a pooled vector, which the authors' adapters do not make")
    scheduler = part.parent / "scheduler"
    said = (scheduler / "scheduler_config.json").is_file()
    scaled = row if row.latent_scale is not None else replace(row, latent_scale=LATENT_SCALE)
    return network, VisionConfig(
        model_id=stored.get("model_id", model_id(folder)),
        target=row.name,
        context_width=row.context_width(config),
        objective=Objective.load(scheduler).kind if said else OBJECTIVE,
        latent_channels=config["in_channels"],
        latent_scale=latent_scale(part, scaled),
        fingerprint=_print(network, part),
    )


def changed(recipe: PromptRecipe, overrides: Sequence[str]) -> PromptRecipe:
    """``recipe`` with KEY=VALUE put in, values as in TOML."""
    values = asdict(recipe)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ValueError(f"--prompt takes KEY=VALUE, got {override!r}")
        values[key.strip()] = toml_value(value.strip())
    return from_dict(PromptRecipe, values, "prompt")


def _print(network: nn.Module, folder: Path) -> str | None:
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
        return fingerprint.files_print(network, files)


def _digests(folder: Path) -> dict[str, str]:
    """sha256 of the released files, by their path in the folder."""
    names = ("lora_text.pt", "lora_vis.pt")
    files = [folder / name for name in names] + sorted((folder / "adapter").glob("diffusion_pytorch_model.*"))
    digests = {}
    for file in files:
        with file.open("rb") as stream:
            digests[file.relative_to(folder).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    return digests
