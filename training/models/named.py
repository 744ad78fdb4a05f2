"""Model names in recipes and on the command line -> local paths: a path, or ``demo:NAME``."""

from __future__ import annotations

from pathlib import Path

from .vae import own_vae

WEIGHTS = Path(__file__).parents[1] / "demo" / "weights"


def language(name: str) -> Path:
    """A local folder or .gguf file; ``demo:minilm`` and ``demo:smollm2`` are looked up or fetched by ``fetch.py``;
    ``demo:own`` is the demo vision model's own text encoder.
    """
    if name == "demo:own":
        return WEIGHTS / "vision" / "text_encoder"
    if name.startswith("demo:"):
        from .fetch import fetch

        return fetch(name.removeprefix("demo:"))
    return Path(name)


def teacher(name: str) -> Path:
    """The folder of a text encoder, or of a pipeline, whose own are meant."""
    return vision(name) if name == "demo:vision" else language(name)


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
