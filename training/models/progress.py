"""Progress of what takes more than a few seconds: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

SECONDS = 10.0
log = logging.getLogger(__name__)


class Lines(tqdm):
    """tqdm's bar as lines of their own, the first after ten seconds."""

    shown: float | None = None  # how far it was in the last line

    def __init__(self, iterable: Iterable[Any] | None = None, **options: Any):
        options |= {"mininterval": SECONDS, "maxinterval": SECONDS, "delay": SECONDS, "ascii": True, "ncols": 79}
        super().__init__(iterable, **options)

    def close(self) -> None:
        self.leave = self.leave and self.shown != self.n
        super().close()

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if msg != "":
            self.shown = self.n
            end = "" if self.disable else "\n"  # the last, which tqdm ends itself
            self.fp.write(f"{self if msg is None else msg}{end}")
            self.fp.flush()


def bar(iterable: Iterable[Any] | None = None, **options: Any) -> tqdm:
    """tqdm's arguments."""
    return (tqdm if sys.stderr.isatty() else Lines)(iterable, **options)


@contextmanager
def told(what: str) -> Iterator[None]:
    """Log ``what``, now and every ten seconds with the time taken: of work that cannot say how far it is."""
    over = threading.Event()

    def tell() -> None:
        seconds = 0.0
        while not over.wait(SECONDS):
            seconds += SECONDS
            log.info("%s: %.0f s", what, seconds)

    log.info(what)
    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
