"""Where a recipe's models are: a path, or a name of the demo's models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from .files import write_text
from .pair import Pair
from .vision_model import network_folder, own_vae

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


def bridge(name: str) -> Path:
    """A bridge file; ``demo:own`` and the like are the bundled ones."""
    return WEIGHTS / f"{name.removeprefix('demo:')}.safetensors" if name.startswith("demo:") else Path(name)


def vae(name: str) -> Path:
    return WEIGHTS / "vae.safetensors" if name == "demo:vae" else Path(name)


def vae_for(vision_model: str, asked: str | None) -> Path:
    """The VAE asked for, else the vision model's own. Raises ValueError where its folder has none."""
    if asked is None and vision_model == "demo:vision":
        asked = "demo:vae"
    return vae(asked) if asked else own_vae(vision(vision_model))


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
