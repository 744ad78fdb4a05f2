"""Whether a model that lies elsewhere is the one that a run began with: its weights, their sizes, and its configs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from torch import nn

from ...lavi_core.config import OwnEncoderConfig
from ...lavi_core.fingerprint import magnitudes, weights_fingerprint
from ..models import named
from ..models.diffusers_folder import network_folder
from ..recipe import Recipe


def prints_of(
    recipe: Recipe, network: nn.Module, vae: nn.Module, ear: OwnEncoderConfig | None
) -> dict[str, str | None]:
    """Of the vision model as it was loaded, with its scheduler, of its VAE, and of the own encoder that is heard."""
    vision, latents = named.vision(recipe.vision.model), named.vae(recipe.vision.vae)
    return {
        "vision": _print(network, network_folder(vision), vision / "scheduler"),
        "vae": _print(vae, latents),
        "own_encoder": None if ear is None else _facts(ear),
    }


def _facts(ear: OwnEncoderConfig) -> str:
    facts = [[encoder.fingerprint, encoder.facts] for encoder in ear.encoders]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _print(model: nn.Module, *folders: Path) -> str:
    """folders: of the .json files that shape what the model does; a lone file has none."""
    digest = hashlib.sha256(f"{weights_fingerprint(model)} {json.dumps(magnitudes(model))}".encode())
    for folder in folders:
        for path in sorted(folder.glob("*.json")):
            digest.update(path.read_bytes())
    return digest.hexdigest()
