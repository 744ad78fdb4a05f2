"""SIGTERM and Ctrl-C: the step in hand is finished, everything is saved, the run ends."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator

from .readback import Readback

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ECHO = 1.0  # seconds


class Stopped(SystemExit):
    """A run that was asked to stop and has saved. Its exit status is the shell's for the signal: 143 or 130."""

    def __init__(self, signum: int):
        super().__init__(128 + signum)
        self.signum = signum


class StopSignals:
    """Takes the signals while it is entered, and puts back the handlers of before. Only the main thread can take them:
    entered in another it does nothing.

    asked: the first signal that came, 0 = none. A second one ends the process at once. A launcher passes on to its
    processes the Ctrl-C that the terminal has sent them already: one that comes within a second is that echo.
    """

    def __init__(self) -> None:
        self.asked, self._since = 0, 0.0
        self._on_its_way: Readback | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def agreed(self, accelerator: Accelerator) -> int:
        """The signal that any of the processes was sent, 0 = none; the same on all of them. Every rank must call it.

        What several GPUs agree on is told at the call that comes after: one that waits to be told does nothing
        meanwhile.
        """
        if accelerator.num_processes == 1:
            return self.asked
        asked = torch.full((1,), self.asked, device=accelerator.device)
        torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
        before, self._on_its_way = self._on_its_way, Readback(asked)
        told = before if asked.is_cuda else self._on_its_way
        return 0 if told is None else int(told.read()[0])

    def _note(self, number: int, _: FrameType | None) -> None:
        if not self.asked:
            self.asked, self._since = number, time.monotonic()
        elif time.monotonic() - self._since > ECHO:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
