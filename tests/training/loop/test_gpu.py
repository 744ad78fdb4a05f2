"""The trainer on a GPU: it learns what it learns on a CPU, and goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from lavi_bridge.training.loop import step
from lavi_bridge.training.loop.trainer import Trainer
from lavi_bridge.training.recipe import read_recipe

QUIET = ["language.dropout=0.0", "vision.dropout=0.0", "adapter.kind=linear", "trackers=[]"]
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here")


def train(recipe: Path, output: Path, *changes: str, resume: bool = False) -> list[float]:
    AcceleratorState._reset_state(reset_partial_state=True)
    Trainer(read_recipe(recipe, [*QUIET, *changes, f"output={json.dumps(str(output))}"]), resume=resume).run()
    return [json.loads(line)["loss"] for line in (output / "log.jsonl").read_text().splitlines()]


@gpu
@pytest.mark.parametrize("compiled", ["false", "true"])
def test_losses_are_those_of_a_cpu(compiled: str, recipe: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    found = train(recipe, tmp_path / "gpu", f"compile={compiled}")
    request.getfixturevalue("on_cpu")
    assert found == pytest.approx(train(recipe, tmp_path / "cpu"), rel=1e-3)


@gpu
def test_a_run_goes_on(recipe: Path, tmp_path: Path) -> None:
    whole = train(recipe, tmp_path / "whole", "ema=0.9")
    train(recipe, tmp_path / "parts", "ema=0.9", "steps=3")
    assert train(recipe, tmp_path / "parts", "ema=0.9", resume=True) == pytest.approx(whole, rel=1e-4)


def test_a_step_that_is_read_later_is_the_same_step(
    recipe: Path, tmp_path: Path, on_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU does, on a CPU: a bad step is found without being read, and everything comes out as if it was."""
    losses = step.TrainStep.loss

    def broken(self: step.TrainStep, batch: object) -> torch.Tensor:
        calls.append(1)
        return losses(self, batch) * (float("nan") if len(calls) == 3 else 1)  # type: ignore[arg-type]

    monkeypatch.setattr(step.TrainStep, "loss", broken)
    seen = []
    make = step.TrainStep.__init__
    for later in (False, True):

        def made(self: step.TrainStep, *args: object, later: bool = later) -> None:
            make(self, *args)  # type: ignore[arg-type]
            self.reads_later = later

        monkeypatch.setattr(step.TrainStep, "__init__", made)
        calls: list[int] = []
        output = tmp_path / str(later)
        changes = [*QUIET, "ema=0.9", 'optimizer.bad_steps="skip"', f"output={json.dumps(str(output))}"]
        trainer = Trainer(read_recipe(recipe, changes))
        trainer.run()
        lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
        log = [{key: line.get(key) for key in ("step", "loss", "norm", "skipped")} for line in lines]
        seen.append((log, [p.detach().clone() for p in trainer.trained.values()], trainer.ema.dump()))
    (first, weights, averages), (second, others, averages_later) = seen
    assert first == second and [line["step"] for line in first] == [1, 2, 3, 4, 5, 6] and first[2]["skipped"]
    assert all(map(torch.equal, weights, others))
    assert all(torch.equal(value, averages_later[key]) for key, value in averages.items())
