"""Which LoRA a LoRA loader of a graph brings: a bridge's own, which stock loaders read too, or another one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from . import folders
from .saved_model import bridges_in

LORAS, MODELS = ("loras",), ("diffusion_models", "checkpoints")  # kinds of folder
PART = 64  # values of each matrix that are compared


def first_rows(lora: Mapping[str, Any]) -> list[Tensor]:
    """What the core's ``lora`` is known by: the first values of each matrix that reads the input, into which no writer
    puts a strength."""
    return [_part(delta.down[0]) for delta in lora.values()]


def may_bring(inputs: Mapping[str, Any], rows: list[Tensor]) -> bool:
    """Whether a LoRA loader with these inputs brings the LoRA known by ``rows``; also where none of them names a file
    that can be read here."""
    files = _files(inputs, *LORAS)
    read = [found for path in files if (found := _rows_in(path, folders.stamp_of(path))) is not None]
    return len(read) < len(files) or not files or any(_share_one(rows, found) for found in read)


def brings(tensors: Any, rows: list[Tensor]) -> bool:
    """Whether these, by name as a file has them, are of the LoRA known by ``rows``."""
    named = tensors.values() if isinstance(tensors, Mapping) else ()
    return _share_one(rows, [_part(part[:1]) for part in named if isinstance(part, Tensor) and part.ndim > 1])


def _texts(value: Any) -> Iterator[str]:
    """Loaders of several files keep each in a table of its own."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _texts(part)


def has_one(inputs: Mapping[str, Any]) -> bool:
    """Whether a node with these inputs loads a model that was saved with the LoRA of a bridge in its weights."""
    return any(_saved_with(path, folders.stamp_of(path)) for path in _files(inputs, *MODELS))


@lru_cache(maxsize=64)
def _saved_with(path: Path, stamp: str) -> bool:
    return bool(bridges_in(path))


def _files(inputs: Mapping[str, Any], *kinds: str) -> list[Path]:
    """The .safetensors files that any of the inputs names."""
    found = []
    for name in _texts(inputs):
        if not name.endswith(".safetensors"):  # most are prompts and choices
            continue
        try:
            found.append(folders.resolve("file", name, *kinds))
        except ValueError:
            continue
    return [path for path in found if path.is_file()]


@lru_cache(maxsize=64)
def _rows_in(path: Path, stamp: str) -> list[Tensor] | None:
    """The beginning of each matrix of a .safetensors file as it is now (``stamp``); None where it is no such file."""
    try:
        with safe_open(path, "pt") as file:
            slices = (file.get_slice(name) for name in file.keys())  # noqa: SIM118
            return [_part(part[:1]) for part in slices if len(part.get_shape()) > 1]
    except (OSError, SafetensorError):
        return None


def _part(row: Tensor) -> Tensor:
    return row.detach().flatten()[:PART].float()


def _share_one(rows: list[Tensor], found: list[Tensor]) -> bool:
    """In whatever dtype they were saved."""
    widths = {len(row) for row in rows}
    ours = {width: torch.stack([row for row in rows if len(row) == width]) for width in widths}
    return any(bool(torch.isclose(ours[len(row)], row, rtol=1e-2).all(1).any()) for row in found if len(row) in ours)
