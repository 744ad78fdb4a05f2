"""A lock on the output folder: one trainer at a time."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

log = logging.getLogger(__name__)

NAME = ".lock"
FAR = 1 << 30  # Windows forbids others to read a locked byte: the one that is locked lies behind the text
TAKEN = {errno.EACCES, errno.EAGAIN, errno.EDEADLK}


class Locked(ValueError):
    """Another process holds the folder."""


@contextmanager
def held(output: str | Path) -> Iterator[None]:
    """Hold ``output``/.lock; the folder is made. The operating system drops the lock with its process, killed or not.

    Raises Locked for a folder that another process holds, ValueError where nothing can be written. A file system that
    has no locks is warned about and used.
    """
    path = Path(output) / NAME
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise ValueError(f"nothing can be written to the output {output} ({error}); set another output") from None
    with file:
        try:
            _lock(file)
        except OSError as error:
            if error.errno in TAKEN:
                file.seek(0)
                raise Locked(
                    f"another trainer is at work in {output} ({file.read().strip() or 'it has not said which'}); wait "
                    "for its end, or set another output"
                ) from None
            log.warning("%s cannot be locked (%s): see to it that no other trainer works there", output, error)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


if os.name == "nt":

    def _lock(file: IO) -> None:
        import msvcrt

        file.seek(FAR)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]

else:

    def _lock(file: IO) -> None:
        """fcntl's lock, not flock's: workers that a killed trainer has forked would go on holding the latter."""
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
