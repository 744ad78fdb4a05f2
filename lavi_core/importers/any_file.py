"""A bridge of this project or another project's adapter file, whichever it is."""

from __future__ import annotations

from pathlib import Path

from ..adapters import ADAPTERS
from ..checkpoint import BridgeCheckpoint, is_bridge, read_config
from ..config import BridgeConfig
from ..language import TextEncoder
from .foreign import read_foreign, read_foreign_config


def read_any_config(path: str | Path, preset: str | None = None) -> BridgeConfig:
    """Of which the header alone is read. Raises ValueError as reading does, and for a preset of a bridge."""
    return read_config(path) if _is_ours(Path(path), preset) else read_foreign_config(path, preset)


def read_any(
    path: str | Path,
    preset: str | None = None,
    *,
    encoder: TextEncoder | None = None,
    query_tokenizer: str | Path | None = None,
) -> BridgeCheckpoint:
    """Whole. encoder, query_tokenizer: see ``read_foreign``; the latter is taken where a file needs one. Raises
    ValueError as ``read_any_config`` does."""
    if _is_ours(Path(path), preset):
        return BridgeCheckpoint.load(path)
    asks = ADAPTERS[read_foreign_config(path, preset).adapter.kind].asks == "ids"
    return read_foreign(path, preset, encoder=encoder, query_tokenizer=query_tokenizer if asks else None)


def is_ours(path: str | Path) -> bool:
    """Whether it is a bridge of this project. Raises ValueError for a damaged file."""
    return Path(path).suffix == ".safetensors" and is_bridge(Path(path))


def _is_ours(path: Path, preset: str | None) -> bool:
    ours = is_ours(path)
    if ours and preset is not None:
        raise ValueError(
            f"the preset {preset!r} was asked for, but {path} is a bridge, which says all of it: leave it out"
        )
    return ours
