"""sha256 of model files' bytes, kept beside a cache so that it is not computed at every start."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from ...lavi_core.files import write_text

NAME = "hashes.json"


def content_hash(files: Sequence[Path], folder: Path) -> str:
    """One hash of the bytes of all ``files``. folder: where each file's is remembered by path, size and time of change;
    it need not be there."""
    store = folder / NAME
    known = _read(store)
    digests, fresh = [], dict(known)
    for file in files:
        stat = file.stat()
        key = f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}"
        if key not in fresh:
            with file.open("rb") as stream:
                fresh[key] = hashlib.file_digest(stream, "sha256").hexdigest()
        digests.append(fresh[key])
    if fresh != known:
        write_text(store, json.dumps(fresh, indent=1))
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _read(store: Path) -> dict[str, str]:
    """A file that is no such table, as a crash or another program may have left it, is written anew."""
    try:
        found = json.loads(store.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
