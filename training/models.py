"""Where a recipe's models are: a path, or a name of the demo's models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from .files import write_text
from .pair import Pair

WEIGHTS = Path(__file__).parent / "demo" / "weights"


def language(name: str) -> Path:
    """A local folder or .gguf file; ``demo:minilm`` and ``demo:smollm2`` are looked up or fetched by ``demo/fetch.py``;
    ``demo:own`` is the demo vision model's own text encoder.
    """
    if name == "demo:own":
        return WEIGHTS / "vision" / "text_encoder"
    if name.startswith("demo:"):
        from .demo.fetch import fetch

        return fetch(name.removeprefix("demo:"))
    return Path(name)


def vision(name: str) -> Path:
    return WEIGHTS / "vision" if name == "demo:vision" else Path(name)


def vae(name: str) -> Path:
    return WEIGHTS / "vae.safetensors" if name == "demo:vae" else Path(name)


def save_fully_trained(pair: Pair, folder: Path) -> None:
    """Models that a recipe trains whole are written beside the bridge, in the libraries' own formats."""
    target = folder / "vision"
    if pair.recipe.vision.train == "full":
        source = vision(pair.recipe.vision.model)
        pair.network.save_pretrained(target / "unet", safe_serialization=True)  # type: ignore[operator]
        shutil.copytree(source / "scheduler", target / "scheduler", dirs_exist_ok=True)
        # diffusers writes only the keys it knows; latent_scale and model_id are ours.
        written = json.loads((target / "unet" / "config.json").read_text())
        kept = json.loads((source / "unet" / "config.json").read_text())
        write_text(target / "unet" / "config.json", json.dumps({**kept, **written}, indent=2))
    if pair.recipe.language.train == "full":
        pair.encoder.model.save_pretrained(target / "text_encoder", safe_serialization=True)  # type: ignore[operator]
        pair.encoder.tokenizer.save_pretrained(target / "text_encoder")
