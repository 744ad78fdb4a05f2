"""Steps that are not taken: their loss or gradient norm is not finite, or far above what is usual."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..recipe import OptimizerSection

log = logging.getLogger(__name__)

MEMORY = 0.98  # of the running mean
SETTLED = 20  # steps before a loss can be told to be unusual
IN_A_ROW = 20  # skipped steps after which a run is lost


class BadSteps:
    """Steps are judged by numbers that all processes share, so all decide alike."""

    def __init__(self, settings: OptimizerSection, output: Path):
        self.settings, self.output = settings, output
        self.usual, self.seen, self.skipped = 0.0, 0, 0

    def check(self, step: int, loss: float, norm: float, names: Sequence[str], write: bool) -> str | None:
        """None for a step to be taken, else why it is skipped. write: list the batch in OUTPUT/bad_steps.jsonl.

        Raises ValueError where the recipe stops at a bad step, and after 20 of them in a row.
        """
        problem = self._problem(loss, norm)
        if problem is None:
            self.usual = loss if not self.seen else MEMORY * self.usual + (1 - MEMORY) * loss
            self.seen, self.skipped = self.seen + 1, 0
            return None
        self.skipped += 1
        record = self.output / "bad_steps.jsonl"
        if write:
            with record.open("a") as file:
                file.write(json.dumps({"step": step, "reason": problem, "batch": list(names)}) + "\n")
        some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        if self.settings.bad_steps == "stop" or self.skipped == IN_A_ROW:
            way_out = "lower the learning rates, or look at the batch"
            if self.settings.bad_steps == "stop":
                way_out += ", or set optimizer.bad_steps = 'skip'"
            raise ValueError(
                f"the {problem} at step {step}, on the batch {some} (listed in {record}); the last good state is in "
                f"{self.output / 'state'}: {way_out}"
            )
        log.warning("step %d is skipped: the %s, on the batch %s", step, problem, some)
        return problem

    def start_over(self) -> None:
        """From here on another loss is usual."""
        self.usual, self.seen = 0.0, 0

    def found(self, numbers: Tensor) -> Tensor:
        """What ``check`` will say of [loss, norm, ...], on their device and without waiting for them: [] float32, 1 for
        a step that is not taken."""
        bad = ~numbers[:2].isfinite().all()
        if self.seen >= SETTLED and self._limit():
            bad |= numbers[0] > self._limit()
        return bad.float()

    def _limit(self) -> float:
        """The loss that a step may have, 0 for any; as float32 has it, for a GPU compares in that."""
        return float(np.float32(self.settings.explosion * self.usual))

    def _problem(self, loss: float, norm: float) -> str | None:
        for name, value in (("loss", loss), ("gradient norm", norm)):
            if not math.isfinite(value):
                return f"{name} is {value}"
        limit = self._limit()
        if limit and self.seen >= SETTLED and loss > limit:
            return f"loss is {loss:.3g}, {loss / self.usual:.0f} times the usual {self.usual:.3g}"
        return None

    def dump(self) -> dict[str, Tensor]:
        return {"usual_loss": torch.tensor([self.usual, self.seen], dtype=torch.float64)}

    def restore(self, extra: dict[str, Tensor]) -> None:
        if "usual_loss" in extra:  # states of before have none
            self.usual, self.seen = float(extra["usual_loss"][0]), int(extra["usual_loss"][1])
