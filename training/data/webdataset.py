"""WebDataset: captioned pictures in tar files, each read once from start to end."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..recipe import DataSection
from .image_files import SUFFIXES, columns, pick_caption
from .resize_and_crop import AspectBuckets, UnreadableImage
from .sources import Example, Shard

CHUNK = 2**20


class WebDatasetSource:
    """data.path: tars that braces count off (``data/{000..009}.tar``; ``::`` between several), files or whatever
    webdataset's gopen reads (``pipe:curl -s ...``, https, s3). Files of one name are one example: an image, and a .txt
    or a .json with the caption. One without either is counted as unreadable; a tar that is cut short is an error.

    A file's print is its path, size and time; a pipe's is its command alone, so a tar that changes behind the same
    command is not noticed.
    """

    changing_captions = False

    def __init__(self, section: DataSection):
        from webdataset.shardlists import expand_urls

        self.section, self.buckets = section, AspectBuckets(section)
        if not section.path:
            raise ValueError("data.path is empty; it names the tars, as in data/{000..009}.tar")
        try:
            self.tars = [str(url) for url in expand_urls(section.path)]
        except (AssertionError, ValueError) as error:  # a ${name} that is not set, braces that do not close
            raise ValueError(f"data.path {section.path!r} cannot be expanded: {error}") from None
        missing = [tar for tar in self.tars if ":" not in tar and not Path(tar).is_file()]
        if missing:
            raise ValueError(f"{len(missing)} of {len(self.tars)} tars are not there, the first is {missing[0]}")

    def print_of_all(self) -> None:
        """None: captions and sizes are known once the tars were read."""

    def shards(self) -> list[Shard]:
        return [Shard(tar, self._print(tar), None, partial(self._read, tar)) for tar in self.tars]

    def _print(self, tar: str) -> str:
        facts: list[Any] = [tar, [tuple(size) for size in self.buckets.sizes], self.section.caption_column]
        if Path(tar).is_file():
            stat = Path(tar).stat()
            facts += [stat.st_size, stat.st_mtime_ns]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def _read(self, tar: str) -> Iterator[Example]:
        from webdataset.tariterators import group_by_keys

        def refuse(error: Exception) -> bool:
            raise ValueError(f"{tar}: {error.args[0]}") from None

        for sample in group_by_keys(_members(tar), handler=refuse):
            name = f"{tar} {sample['__key__']}"
            caption = self._caption(sample)
            suffix = next((key for key in sample if f".{key}" in SUFFIXES), None)
            if caption is None:
                problem = f"{name}: no .txt, nor a .json with {columns(self.section.caption_column)}"
            else:
                problem = f"{name}: no image" if suffix is None else ""
            data = sample[suffix] if suffix else b""
            yield Example(name, caption or "", partial(self._load, data, name, problem))

    def _caption(self, sample: Mapping[str, bytes]) -> str | None:
        if "txt" in sample and not self.section.caption_column:
            return sample["txt"].decode("utf-8-sig", errors="replace").strip()
        try:
            record = json.loads(sample.get("json", b"{}"))
        except ValueError:
            return None
        return pick_caption(record, self.section.caption_column) if isinstance(record, dict) else None

    def _load(self, data: bytes, name: str, problem: str) -> np.ndarray:
        if problem:
            raise UnreadableImage(problem)
        return self.buckets.read(io.BytesIO(data), name)


class _Ending(tarfile.TarInfo):
    """tarfile takes any end of a stream for the end of the archive; here an end without its mark is an error."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: Any, errors: str) -> tarfile.TarInfo:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise EOFError(f"no end of archive: {error}") from None


def _members(tar: str) -> Iterator[dict[str, Any]]:
    """The files in a tar, as webdataset groups them. Raises ValueError, naming the tar, unless it is whole."""
    try:
        with _opened(tar) as stream, tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Ending) as opened:
            archive: Any = opened
            for member in archive:
                content = archive.extractfile(member) if member.isreg() else None
                if content is not None:
                    yield {"fname": member.name, "data": content.read(), "__url__": tar}
                archive.members = []  # tarfile would keep a record of each
            _drain(archive.fileobj)
    except (tarfile.TarError, OSError, EOFError) as error:
        reason = str(error) or type(error).__name__
        raise ValueError(
            f"{tar} is cut short or no tar ({reason}); fetch it again or leave it out of data.path"
        ) from None


@contextmanager
def _opened(tar: str) -> Iterator[Any]:
    """A pipe whose command fails raises OSError, unless it is left before its end."""
    from webdataset.gopen import gopen

    stream: Any = gopen(tar)
    try:
        yield stream
    except BaseException:
        with suppress(OSError):
            stream.close()
        raise
    stream.close()


def _drain(rest: Any) -> None:
    """Reads what pads the end of an archive. Raises EOFError for more than that, as in tars that were put together."""
    while chunk := rest.read(CHUNK):
        if chunk.strip(b"\0"):
            raise EOFError("more follows after its end")
