"""Batches are prepared in a thread, some steps ahead."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T], Iterator[T]):
    """``make(start)``, ``make(start + 1)`` and so on up to ``make(stop - 1)``, made in a thread, at most ``ahead`` of
    them early. stop: None = without end.

    make: runs in that one thread, in the order of the steps; it draws from generators of its own, and turns gradients
    off for itself, which torch does by thread. waited: seconds that ``next`` has spent waiting so far. Used in a
    ``with``, which ends the thread however the block is left.
    """

    def __init__(self, make: Callable[[int], T], start: int, ahead: int = 4, stop: int | None = None):
        self.make, self.ahead, self.stop, self.waited = make, ahead, stop, 0.0
        self._asked = start
        self._ready: deque[Future[T]] = deque()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")

    def __enter__(self) -> Prefetch[T]:
        self._ask()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __next__(self) -> T:
        """Raises what ``make`` raised, from where it did, at the step that it was raised for."""
        self._ask()
        if not self._ready:
            raise StopIteration
        began = time.perf_counter()
        batch = self._ready.popleft().result()
        self.waited += time.perf_counter() - began
        self._ask()
        return batch

    def _ask(self) -> None:
        while len(self._ready) < self.ahead and (self.stop is None or self._asked < self.stop):
            self._ready.append(self._pool.submit(self.make, self._asked))
            self._asked += 1
