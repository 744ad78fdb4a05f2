"""Progress bar and cancel for long work, such as reading a language model."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

import comfy.model_management
import comfy.utils
from torch import nn

T = TypeVar("T")
SECONDS = 0.1  # between two looks at the user's cancel


def interruptible(work: Callable[[], T], meanwhile: Callable[[], object] = lambda: None) -> T:
    """What ``work`` returns, which runs in a thread of its own: the user's cancel is raised here at once, and what
    comes of the thread is dropped. meanwhile: called between two looks at the cancel."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="lavi-bridge reading", daemon=True).start()
    while not wait([future], SECONDS).done:
        meanwhile()
        comfy.model_management.throw_exception_if_processing_interrupted()
    meanwhile()
    comfy.model_management.throw_exception_if_processing_interrupted()  # pressed while it was over in no time
    return future.result()


def with_progress(work: Callable[[Callable[[int, int], None]], T]) -> T:
    """The same of ``work`` that tells how far it is: (done, total). The host's progress bar moves meanwhile, and after
    a cancel the thread ends at its next word."""
    cancelled = threading.Event()
    reached: list[tuple[int, int]] = [(0, 1)]

    def report(done: int, total: int) -> None:
        if cancelled.is_set():
            raise InterruptedError
        reached[0] = done, total

    bar = comfy.utils.ProgressBar(1)
    try:
        return interruptible(lambda: work(report), lambda: bar.update_absolute(*reached[0]))
    except BaseException:
        cancelled.set()
        raise


def cancellable(model: nn.Module, layers: nn.ModuleList) -> None:
    """Let a pass of ``model`` end, where the user has pressed cancel, before its next layer or linear map."""
    for module in {*layers, *(module for module in model.modules() if isinstance(module, nn.Linear))}:
        module.register_forward_pre_hook(_stop)


def _stop(*_: Any) -> None:
    comfy.model_management.throw_exception_if_processing_interrupted()
