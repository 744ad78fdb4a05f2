"""The language model that a bridge was made for, among those on this machine, by its fingerprint."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from ...lavi_core.checkpoint import read_config
from ...lavi_core.config import LanguageConfig
from ...lavi_core.language import TextEncoder
from . import named
from .fetch import folder as demo_folder

log = logging.getLogger(__name__)

VARIABLE = "LAVI_BRIDGE_LANGUAGE_MODELS"  # a folder of models, as ComfyUI's models/LLM


def language_for(bridge: str | Path, asked: str | None, folder: str | None = None) -> Path:
    """Path of the model that is ``asked`` for, else of the bridge's own, see ``find_language``."""
    return named.language(asked) if asked else find_language(bridge, folder)


def find_language(bridge: str | Path, folder: str | None = None) -> Path:
    """Path of the model, looked for in ``folder``, else in that of the variable, and among the demo's models.
    It is named in the log. Raises ValueError, naming the model and the places, where none of them has its fingerprint.
    """
    wanted = read_config(bridge).language
    if folder is not None and not Path(folder).is_dir():
        raise ValueError(f"there is no folder of language models {folder}; name one that is there, or leave it out")
    asked = folder or os.environ.get(VARIABLE)
    places = [Path(place) for place in (asked, demo_folder(), named.WEIGHTS / "vision") if place]
    for path in (path for place in places for path in candidates(place)):
        if _is_it(path, wanted):
            log.info("language model: %s, which the bridge was made for", path)
            return path
    looked = " and ".join(str(place) for place in places[:-1])
    raise ValueError(
        f"{bridge} was made for {wanted.model_id}, which is not in {looked}: name it with --language-model, or "
        f"its folder with --language-models or {VARIABLE}"
    )


def candidates(place: Path) -> Iterator[Path]:
    """A Hugging Face folder itself, or those and the .gguf files in a folder and in the folders in it."""
    for path in [place, *sorted(place.glob("*")), *sorted(place.glob("*/*"))]:
        if path.suffix.lower() == ".gguf" or (path.is_dir() and (path / "config.json").is_file()):
            yield path


def _is_it(path: Path, wanted: LanguageConfig) -> bool:
    try:
        found = TextEncoder.skeleton(path).config
    except (ValueError, OSError):  # a model of another kind, or a broken one
        return False
    return wanted.fingerprint is not None and found.fingerprint == wanted.fingerprint
