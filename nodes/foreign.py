"""Other projects' adapters, read as bridges where their own node packs keep them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from .folders import host_tokenizers
from .notice import repeat

AUTO = "auto"
# The names in the core's FOREIGN, which is not imported at the host's start.
PRESETS = (
    AUTO,
    "ella",
    "ella-fixed",
    "gemma",
    "t5gemma",
    "qwen-sdxl",
    "distill-t5",
    "anima",
    "gguf-trainer-pixart",
    "anima-t5free",
)


def named(preset: str) -> str | None:
    """A choice of PRESETS -> what the core takes."""
    return None if preset == AUTO else preset


def read_wanted(path: Path, preset: str) -> Any:
    """The core's LanguageConfig of what a file of either kind was made for, from its header. Raises ValueError."""
    from ..lavi_core.importers import read_any_config

    return read_any_config(path, named(preset)).language


def read(path: Path, preset: str, encoder: Any) -> Any:
    """A bridge, or another project's adapter, of which it is shown on the node how it is read. -> the core's
    BridgeCheckpoint. encoder: the core's, of the width that the file asks for. Where one asks with the ids of a second
    tokenizer, that is T5's, which the host ships. Raises ValueError."""
    from ..lavi_core.importers import is_ours, read_any

    t5 = host_tokenizers().get("t5")
    checkpoint = read_any(path, named(preset), encoder=encoder, query_tokenizer=t5)
    if not is_ours(path):
        made = checkpoint.config.provenance
        text = f"{path.name} is {made['imported']}, read by the preset {made['preset']}: {made['preset_source']}"
        logging.info("LaVi-Bridge: %s", text)
        repeat(text)
    return checkpoint
