"""Data sets of image files: a table of paths and captions, a folder with .txt files, a metadata.jsonl."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..recipe import DataSection
from .resize_and_crop import AspectBuckets, Size
from .sources import IndexedSource

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
UNREAD = {".gif", ".avif", ".heic", ".heif", ".jxl", ".tif", ".tiff"}
COLUMNS = ("text", "caption")
LOOKED_INTO, SAMPLE = 10_000, 4096  # pictures, bytes

log = logging.getLogger(__name__)


class _Files(IndexedSource):
    """Image files with one caption each."""

    def __init__(self, section: DataSection, pairs: list[tuple[Path, str]], where: Path):
        if not pairs:
            raise ValueError(f"no captioned images in {where}")
        if section.caption_lines == "first":
            pairs = [(path, caption.partition("\n")[0].rstrip()) for path, caption in pairs]
        self.section, self.pairs, self.buckets = section, pairs, AspectBuckets(section)
        several = sum("\n" in caption for _, caption in pairs)
        self.changing_captions = section.caption_lines == "any" and several > 0
        if several and section.caption_lines == "all":
            log.warning(
                "captions of several lines: %d of %d, each is read as one text; data.caption_lines = 'first' reads the "
                "first line alone, as kohya's sd-scripts does, 'any' one of them in each epoch",
                *(several, len(pairs)),
            )
        self._folder = where if where.is_dir() else where.parent

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, index: int) -> str:
        return str(self.pairs[index][0])

    def place(self, index: int) -> str:
        path = self.pairs[index][0]
        return (path.relative_to(self._folder) if path.is_relative_to(self._folder) else path).as_posix()

    def caption(self, index: int, epoch: int) -> str:
        lines = self.captions(index)
        if len(lines) == 1:
            return lines[0]
        return lines[int(np.random.default_rng([self.section.seed, 3, index, epoch]).integers(len(lines)))]

    def captions(self, index: int) -> list[str]:
        caption = self.pairs[index][1]
        lines = [line.strip() for line in caption.split("\n") if line.strip()] if self.changing_captions else []
        return lines or [caption]

    def image(self, index: int) -> np.ndarray:
        return self.buckets.read(self.pairs[index][0], self.name(index))

    def shape(self, index: int) -> tuple[Size, Size]:
        return self.buckets.look(self.pairs[index][0], self.name(index))

    def print_of_all(self) -> str:
        """Of all places and captions, and of at most ``LOOKED_INTO`` pictures all over the data: the size of the file,
        and some bytes in the middle of it."""
        digest = hashlib.sha256()
        for index, (_, caption) in enumerate(self.pairs):
            digest.update(f"{self.place(index)}\0{caption}\n".encode())
        for path, _ in self.pairs[:: -(-len(self) // LOOKED_INTO)]:
            if path.is_file():
                with path.open("rb") as file:
                    size = file.seek(0, os.SEEK_END)
                    file.seek(size // 2)
                    digest.update(f"{size}\0".encode() + file.read(SAMPLE))
        return digest.hexdigest()

    def print_of(self, indices: range) -> str:
        digest = hashlib.sha256(str(self.buckets.sizes).encode())
        for path, _ in self.pairs[indices.start : indices.stop]:
            stat = path.stat() if path.is_file() else None
            digest.update(f"{path}\0{stat and (stat.st_size, stat.st_mtime_ns)}\n".encode())
        return digest.hexdigest()


class TsvSource(_Files):
    """The authors' format: ``image path<TAB>caption`` a line, relative paths from the file's folder. A caption keeps
    its own tabs; an empty line is skipped, one without a tab is an error.
    """

    def __init__(self, section: DataSection):
        table = Path(section.path)
        if not table.is_file():
            raise ValueError(f"there is no table of captions at {table}")
        pairs = []
        # Not by str.splitlines, which would also split at U+2028 and the like.
        with _utf8(table), table.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                path, tab, caption = line.rstrip("\n").partition("\t")
                if not tab:
                    raise ValueError(f"{table} line {number} has no tab between image path and caption: {line[:80]!r}")
                pairs.append((table.parent / path, caption.strip()))
        super().__init__(section, pairs, table)


class FolderSource(_Files):
    """Every image below a folder that has a .txt of the same name beside it. An image without one is an error."""

    def __init__(self, section: DataSection):
        folder = Path(section.path)
        if not folder.is_dir():
            raise ValueError(f"there is no folder of images at {folder}")
        files = sorted(folder.rglob("*"))
        images = [p for p in files if p.suffix.lower() in SUFFIXES]
        bare = [p for p in images if not p.with_suffix(".txt").is_file()]
        if bare:
            raise ValueError(
                f"{len(bare)} of {len(images)} images have no .txt beside them, the first is {bare[0]}; write it, an "
                "empty one where nothing is to be said, or move them out"
            )
        if left := [p for p in files if p.suffix.lower() in UNREAD]:
            log.warning(
                "pictures left out: %d, the first is %s; those in %s are read",
                *(len(left), left[0], ", ".join(sorted(SUFFIXES))),
            )
        super().__init__(section, [(p, _caption_of(p)) for p in images], folder)


class JsonlSource(_Files):
    """A Hugging Face image folder: a line of ``metadata.jsonl`` is an object with ``file_name``, relative to the
    file, and a caption. data.path is the folder or the file. A line without either is an error.
    """

    def __init__(self, section: DataSection):
        table = Path(section.path)
        if table.is_dir():
            table /= "metadata.jsonl"
        if not table.is_file():
            raise ValueError(f"there is no metadata.jsonl at {table}")
        pairs = []
        with _utf8(table), table.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    pairs.append(_pair(line, section.caption_column, f"{table} line {number}", table.parent))
        super().__init__(section, pairs, table)


@contextmanager
def _utf8(path: Path) -> Iterator[None]:
    """Raise ValueError that names the file for one that is no UTF-8 text."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from None


def _caption_of(image: Path) -> str:
    text = image.with_suffix(".txt")
    with _utf8(text):
        return text.read_text(encoding="utf-8-sig").strip()


def _pair(line: str, column: str, where: str, folder: Path) -> tuple[Path, str]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is no JSON ({error}): {line[:80]!r}") from None
    name = record.get("file_name") if isinstance(record, dict) else None
    if not isinstance(name, str):
        raise ValueError(f"{where} has no file_name, which names the image: {line[:80]!r}")
    caption = pick_caption(record, column)
    if caption is None:
        raise ValueError(f"{where} has no caption in {columns(column)}; set data.caption_column: it has {list(record)}")
    try:
        caption.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} has a caption that is no text ({error}): {line[:80]!r}") from None
    return folder / name, caption


def pick_caption(record: Mapping[str, object], column: str) -> str | None:
    """The caption in a line of metadata or a .json; None where it has none."""
    found = next((record[key] for key in ([column] if column else COLUMNS) if key in record), None)
    return found.strip() if isinstance(found, str) else None


def columns(column: str) -> str:
    return repr(column) if column else " or ".join(map(repr, COLUMNS))
