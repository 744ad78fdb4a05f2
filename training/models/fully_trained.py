"""Models of which a recipe trains every weight, saved in their libraries' own folders beside the bridge."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ...lavi_core.files import write_text
from .diffusers_folder import network_folder
from .named import vision
from .pair import Pair


def save_fully_trained(pair: Pair, folder: Path) -> None:
    """Models that a recipe trains whole are written to ``folder``/vision, in the libraries' own formats.

    An OSError leaves what an earlier save has written.
    """
    from safetensors import SafetensorError

    recipe = pair.recipe
    if "full" not in (recipe.vision.train, recipe.language.train):
        return
    target, part = folder / "vision", folder / ".vision.part"
    shutil.rmtree(part, ignore_errors=True)
    try:
        if recipe.vision.train == "full":
            source = network_folder(vision(recipe.vision.model))
            network = part / source.name
            pair.network.save_pretrained(network, safe_serialization=True)  # type: ignore[operator]
            shutil.copytree(source.parent / "scheduler", part / "scheduler")
            # diffusers writes only the keys it knows; latent_scale and model_id are ours.
            written, kept = (json.loads((path / "config.json").read_text()) for path in (network, source))
            write_text(network / "config.json", json.dumps({**kept, **written}, indent=2))
        if recipe.language.train == "full":
            pair.encoder.model.save_pretrained(part / "text_encoder", safe_serialization=True)  # type: ignore[operator]
            pair.encoder.tokenizer.save_pretrained(part / "text_encoder")
        shutil.rmtree(target, ignore_errors=True)
        part.replace(target)
    except SafetensorError as error:  # safetensors' word for a full disk
        raise OSError(f"{part}: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
