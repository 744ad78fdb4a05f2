"""The training loops, each run in a process of its own, which takes steps when it is told to."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import as_package  # (registers a checkout as lavi_bridge)
import lavi_bridge
import torch
from lavi_bridge.training.models.device import pick_device
from lavi_bridge.training.recipe import Recipe, read_recipe
from stages import Stages


class Stop(Exception):
    """The loop has taken all the steps that are wanted."""


class Gate:
    """Called before each step: ends the turn that is over, answers with what it measured, waits for the next one.

    time: mean seconds of a step, with one thread on a CPU those that the process computed. stages: seconds of each
    stage, all steps together. flops: those of one step, counted by torch. memory: the process's peak in bytes, on a GPU
    that of its tensors.
    """

    def __init__(self, connection: Connection, stages: Stages):
        self.connection, self.stages = connection, stages
        self.what, self.steps, self.left = "", 0, 0
        self.begun = 0.0
        self.counter: Any = None

    def __call__(self) -> None:
        if self.left:
            self.left -= 1
        if self.left:
            return
        if self.what:
            self.connection.send(self._end())
        while True:
            self.what, self.steps = self.connection.recv()
            if self.what == "quit":
                raise Stop
            if self.what != "memory":
                break
            self.connection.send(peak_memory(self.stages.device))
        self.left = self.steps
        self._begin()

    def _begin(self) -> None:
        if self.what == "stages":
            self.stages.start()
        elif self.what == "flops":
            from torch.utils.flop_counter import FlopCounterMode

            self.counter = FlopCounterMode(display=False)
            self.counter.__enter__()
        self._wait()
        self.begun = self._now()

    def _end(self) -> Any:
        if self.what == "stages":
            return self.stages.stop()
        if self.what == "flops":
            self.counter.__exit__(None, None, None)
            return self.counter.get_total_flops() / self.steps
        self._wait()
        return (self._now() - self.begun) / self.steps

    def _now(self) -> float:
        alone = self.stages.device.type == "cpu" and torch.get_num_threads() == 1
        return time.process_time() if alone else time.perf_counter()  # what else the machine does is not counted

    def _wait(self) -> None:
        if self.stages.device.type == "cuda":
            torch.cuda.synchronize()


def peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def ours(recipe: Recipe, gate: Callable[[], None], stages: Stages) -> None:
    from lavi_bridge.training.loop import trainer

    class Prefetch(trainer.Prefetch):
        def __next__(self) -> Any:
            with stages.inside("data"):  # what of it the step waits for
                return super().__next__()

    class Gated(trainer.TrainStep):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            gate()
            return super().__call__(*args, **kwargs)

    trainer.Prefetch, trainer.TrainStep = Prefetch, Gated  # type: ignore[misc]  (in this process alone)
    shutil.rmtree(recipe.output, ignore_errors=True)  # latents are kept elsewhere
    run = trainer.Trainer(recipe)
    for owner, name, stage in (
        (run.pair.encoder, "forward", "language"),
        (run.pair.adapter, "forward", "adapter"),
        (run.pair.network, "forward", "vision"),
        (run.accelerator, "backward", "backward"),
        (run.accelerator, "clip_grad_norm_", "optimizer"),
        (run.optimizer, "step", "optimizer"),
        (run.optimizer, "zero_grad", "optimizer"),
    ):
        stages.wrap(owner, name, stage)
    run.run()


def authors(recipe: Recipe, gate: Callable[[], None], stages: Stages) -> None:
    from authors_loop import train

    train(recipe, gate, stages)


# earlier: ours, of the checkout that the process has been given.
LOOPS: dict[str, Callable[[Recipe, Callable[[], None], Stages], None]] = {
    "ours": ours,
    "earlier": ours,
    "authors": authors,
}


def as_read(recipe: str, given: list[str]) -> Recipe:
    """A recipe below training/recipes with what is given it, as the build that asks reads it."""
    return read_recipe(as_package.ROOT / "training" / "recipes" / f"{recipe}.toml", given)


def work(loop: str, recipe: str, given: list[str], connection: Connection) -> None:
    """Tell which build this is, and run a loop until the other end of the connection says "quit"."""
    connection.send(lavi_bridge.__path__[0])
    stages = Stages(pick_device())
    with suppress(Stop):
        LOOPS[loop](as_read(recipe, given), Gate(connection, stages), stages)
