"""A run folder: manifest.jsonl, samples/NNNNNN.png, scores.jsonl, scores.json."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..models import progress

MANIFEST, SCORES, SCORES_BY_PICTURE = "manifest.jsonl", "scores.json", "scores.jsonl"
MANIFEST_KEYS = ("id", "prompt", "category", "seed", "meta", "cut")
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"


@dataclass(frozen=True)
class Picture:
    """A row of the manifest and its file. cut: tokens of the prompt that the bridge did not hear."""

    id: int
    prompt: str
    category: str
    seed: int
    meta: dict[str, Any]
    cut: int
    path: Path

    def read(self) -> np.ndarray:
        """uint8 [H W 3]"""
        return read_image(self.path)


@dataclass(frozen=True)
class Run:
    """settings, bridge: of all pictures. print: sha256 of the manifest."""

    folder: Path
    pictures: tuple[Picture, ...]
    settings: dict[str, Any]
    bridge: str
    print: str

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """Raises ValueError where a picture is missing or not whole."""
        folder = Path(folder)
        rows = read_manifest(folder)
        pictures = tuple(
            Picture(*(row[key] for key in MANIFEST_KEYS), file_of(folder, row["id"]))  # type: ignore[arg-type]
            for row in rows
        )
        missing = [p.path for p in pictures if not is_whole(p.path, rows[0]["settings"]["size"])]
        if missing:
            raise ValueError(
                f"{folder} lacks {len(missing)} of its {len(rows)} pictures (the first: {missing[0].name}): give "
                "`evaluate generate` the same command again"
            )
        return cls(folder, pictures, rows[0]["settings"], rows[0]["bridge"], sha256_of(folder / MANIFEST))

    @property
    def seeds(self) -> list[int]:
        return sorted({picture.seed for picture in self.pictures})


def batches(pictures: Sequence[Picture], size: int, name: str) -> Iterator[tuple[Sequence[Picture], list[np.ndarray]]]:
    """The pictures with their pixels, ``size`` at a time, under a progress bar called ``name``."""

    with progress.bar(total=len(pictures), desc=name, unit="picture") as bar:
        for i in range(0, len(pictures), size):
            batch = pictures[i : i + size]
            yield batch, [picture.read() for picture in batch]
            bar.update(len(batch))


def read_manifest(folder: Path) -> list[dict[str, Any]]:
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"{folder} has no {MANIFEST}, so it is no run of `evaluate generate`")
    rows = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                rows.append(json.loads(line))
            except ValueError:
                raise ValueError(f"{path} line {number} is not readable as JSON; begin the run again") from None
    if not rows:
        raise ValueError(f"{path} is empty; begin the run again")
    return rows


def file_of(folder: Path, number: int) -> Path:
    return folder / "samples" / f"{number:06d}.png"


def is_whole(path: Path, size: int) -> bool:
    """Whether ``path`` is a PNG of ``size`` x ``size`` from its first byte to its last, without decoding it."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(24)
        file.seek(0, 2)
        file.seek(max(0, file.tell() - len(PNG_END)))
        tail = file.read()
    return head[:8] == PNG_START and head[16:24] == struct.pack(">II", size, size) and tail == PNG_END


def read_image(path: Path) -> np.ndarray:
    """uint8 [H W 3]. Raises ValueError, naming the file, for what is no picture."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{path} is not readable as a picture ({error})") from None


def sha256_of(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
