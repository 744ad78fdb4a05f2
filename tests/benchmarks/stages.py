"""Seconds of a training step by stage."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

NAMES = ("data", "language", "adapter", "vision", "backward", "optimizer", "rest")


class Stages:
    """While ``on``, every moment is charged to the innermost stage that it lies in, else to "rest". A GPU is waited for
    at each boundary then, so a pass with ``on`` is not one to take the speed from.
    """

    def __init__(self, device: torch.device):
        self.device, self.on = device, False
        self.spent: dict[str, float] = dict.fromkeys(NAMES, 0.0)
        self._open = ["rest"]
        self._mark = 0.0

    def start(self) -> None:
        self.spent = dict.fromkeys(NAMES, 0.0)
        self.on = True
        self._charge()
        self.spent["rest"] = 0.0

    def stop(self) -> dict[str, float]:
        """Seconds of each stage since ``start``."""
        self._charge()
        self.on = False
        return dict(self.spent)

    @contextmanager
    def inside(self, stage: str) -> Iterator[None]:
        if not self.on:
            yield
            return
        self._charge()
        self._open.append(stage)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def wrap(self, owner: Any, name: str, stage: str) -> None:
        """Charge every call of the method ``name`` of this one object to ``stage``."""
        method = getattr(owner, name)

        @functools.wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.inside(stage):
                return method(*args, **kwargs)

        setattr(owner, name, timed)

    def _charge(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.spent[self._open[-1]] += now - self._mark
        self._mark = now
