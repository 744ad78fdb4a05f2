"""The log of a run: log.jsonl, curves.png, TensorBoard and wandb."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ...lavi_core.files import write_text
from ...lavi_core.registry import Registry
from ..recipe import Recipe
from .curves import draw_curves

PAUSE = 60.0  # seconds
SHARE = 50  # times: so much longer than the drawing of the curves took they are not drawn again


class Tracker(Protocol):
    """Where curves can be watched."""

    def __init__(self, recipe: Recipe, output: Path, step: int): ...

    def write(self, values: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in OUTPUT/tensorboard."""

    def __init__(self, recipe: Recipe, output: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(output / "tensorboard"), purge_step=step + 1)

    def write(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of the project "lavi-bridge" at wandb.ai, or in OUTPUT/wandb alone with WANDB_MODE=offline. A resumed run
    goes on with its curves.
    """

    def __init__(self, recipe: Recipe, output: Path, step: int):
        import wandb

        path = output / "wandb-id.txt"
        if not path.is_file():
            write_text(path, uuid.uuid4().hex[:12])
        self.run: Any = wandb.init(
            project="lavi-bridge",
            name=recipe.name,
            id=path.read_text().strip(),
            resume="allow",
            dir=str(output),
            config=recipe.plain(),
        )

    def write(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


TRACKERS: Registry[type[Tracker]] = Registry("tracker", {"tensorboard": TensorBoard, "wandb": WeightsAndBiases})


class Journal:
    """One line of log.jsonl for each step and each validation, and the same to the recipe's trackers. A resumed run
    cuts what came after its state.

    told: the keys of what was written before at the step that the run begins at.
    """

    def __init__(self, recipe: Recipe, output: Path, step: int):
        self.output, self.drawn, self.took = output, time.monotonic(), 0.0
        path = output / "log.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        read = [(line, json.loads(line)) for line in lines if line.endswith("\n")]
        write_text(path, "".join(line for line, entry in read if entry["step"] <= step))
        self.told = {key for _, entry in read if entry["step"] == step for key in entry}
        self.file = path.open("a")
        self.trackers = []
        for name in recipe.trackers:
            self.trackers.append(TRACKERS[name](recipe, output, step))

    def write(self, step: int, entry: Mapping[str, Any]) -> None:
        self.file.write(json.dumps({"step": step, **entry}) + "\n")
        flat = dict(_flat(entry))
        for tracker in self.trackers:
            tracker.write(flat, step)

    def flush(self) -> None:
        self.file.flush()

    def draw(self, last: bool) -> None:
        """curves.png of all that was written so far; not more than once a minute, and in a fiftieth of the time, but
        for the ``last``: a long log takes many seconds to read."""
        began = time.monotonic()
        if last or began - self.drawn > max(PAUSE, SHARE * self.took):
            draw_curves(self.output / "log.jsonl", self.output / "curves.png")
            self.drawn = time.monotonic()
            self.took = self.drawn - began

    def close(self) -> None:
        self.flush()
        self.file.close()
        for tracker in self.trackers:
            tracker.close()


def _flat(entry: Mapping[str, Any], prefix: str = ""):
    """Numbers by "group/name"."""
    for key, value in entry.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)):
            yield f"{prefix}{key}", value
