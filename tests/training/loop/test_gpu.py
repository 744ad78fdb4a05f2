"""The trainer on a GPU: it learns what it learns on a CPU, and goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from lavi_bridge.lavi_core.conditioning import Conditioning, HiddenStates
from lavi_bridge.lavi_core.language import TokenBatch
from lavi_bridge.lavi_core.vision import LatentSpace, added_conditions
from lavi_bridge.training.data.text_inputs import to_device
from lavi_bridge.training.loop import step
from lavi_bridge.training.loop.trainer import Trainer
from lavi_bridge.training.models.objective import Objective
from lavi_bridge.training.recipe import read_recipe
from torch.utils._python_dispatch import TorchDispatchMode

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


class Waited(TorchDispatchMode):
    """Copies from the CPU that are waited for, and with them all that a GPU was given before."""

    def __init__(self) -> None:
        super().__init__()
        self.copies, self.waited = 0, list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and not found.is_cpu and any(t.is_cpu for t in tensors(args)):
            self.copies += 1
            if not (kwargs or {}).get("non_blocking"):
                self.waited.append(str(func))
        return found


def tensors(args: Any) -> list[torch.Tensor]:
    return [value for value in args if isinstance(value, torch.Tensor)]


def test_a_step_begins_without_waiting_for_the_one_before() -> None:
    device = torch.device("meta")  # another than the CPU, which is always there
    ids = torch.ones(2, 3, dtype=torch.long)
    latents, timesteps = torch.empty(2, 4, 8, 8, device=device), torch.empty(2, dtype=torch.long, device=device)
    objective = Objective(kind="epsilon", scheduler={}, alphas_cumprod=torch.linspace(0.9, 0.1, 1000))
    heard = Conditioning(torch.empty(2, 3, 4, device=device))
    with Waited() as mode:
        to_device(TokenBatch(ids, ids.bool(), ids.bool(), ()), device)
        to_device(HiddenStates(torch.ones(2, 3, 4), ids.bool()), device)
        objective.corrupt(LatentSpace((0.5,) * 4, (0.0,) * 4).seen(latents), latents, timesteps)
        objective.snr(timesteps)
        added_conditions._rows((1.0, 2.0), heard)
    assert mode.copies == 10 and not mode.waited


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
