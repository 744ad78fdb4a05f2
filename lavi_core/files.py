"""Files are written to a temporary name, flushed and renamed: a reader sees the old file or the new one, whole."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from torch import Tensor


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically; its folder is made. An OSError leaves the old file as it was."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_text(path: str | Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_safetensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """As ``write_bytes``, straight from the tensors: a state of several GB is not copied in memory first."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    whole = {key: t.detach().cpu().contiguous() for key, t in tensors.items()}
    with replacing(path) as temporary:
        try:
            save_file(whole, temporary, dict(metadata or {}))
        except SafetensorError as error:  # its word for a full disk
            raise OSError(f"cannot write {path}: {error}") from error
        with temporary.open("rb+") as file:
            _sort_metadata(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # safetensors makes its files readable by their owner alone


def _sort_metadata(file: BinaryIO) -> None:
    """safetensors writes them in the order of a hash map, another each time (findings/safetensors-other-bytes.sh): the
    same content is to be the same file."""
    size = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(size))
    metadata = header.get("__metadata__", {})
    header["__metadata__"] = dict(sorted(metadata.items()))
    data = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    if len(metadata) > 1 and len(data) <= size:
        file.seek(8)
        file.write(data.ljust(size))


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name beside ``path`` whose file takes its place once it is whole."""
    path = Path(path)
    if path.is_dir():
        raise OSError(f"cannot write {path}: it is a folder; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot write {path}: its folder cannot be made ({error.strerror})") from error
    # Processes of several machines, whose numbers may be the same, share a cache.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.part")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_safetensors(path: str | Path, wanted: Collection[str] | None = None) -> dict[str, Tensor]:
    """wanted: names of the tensors that are read; None = all. Raises ValueError, naming the file, where it is cut short
    or no safetensors file."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    with reading(path):
        if wanted is None:
            return load_file(path)
        with safe_open(str(path), "pt") as file:
            return {name: file.get_tensor(name) for name in wanted}


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """safetensors' own error, which is no OSError and names no file, becomes a ValueError that does."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"{path} is cut short or no safetensors file ({error}); write or fetch it again") from error
