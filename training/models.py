"""Where a recipe's models are: a path, or a name of the demo's models."""

from __future__ import annotations

from pathlib import Path

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
    if pair.recipe.vision.train == "full":
        pair.network.save_pretrained(folder / "vision" / "unet", safe_serialization=True)  # type: ignore[operator]
    if pair.recipe.language.train == "full":
        target = folder / "vision" / "text_encoder"
        pair.encoder.model.save_pretrained(target, safe_serialization=True)  # type: ignore[operator]
        pair.encoder.tokenizer.save_pretrained(target)
