"""A trainer that is killed at any moment and resumed ends as the one that was never killed, to the bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lavi_bridge.training.recipe import read_recipe
from lavi_bridge.training.trainer import Trainer

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}


def start(recipe: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "lavi_bridge.training", str(recipe), *arguments]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def journal(output: Path) -> list[tuple[int, float, float]]:
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["norm"]) for line in lines]


def kill_at(process: subprocess.Popen, output: Path, step: int) -> None:
    """SIGKILL as soon as the run has a state of at least ``step`` steps."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        states = [int(p.name.split("-")[1]) for p in (output / "state").glob("step-*")]
        if any(found >= step for found in states) or process.poll() is not None:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_run_killed_twice_equals_one_that_was_never_killed(recipe: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    process = start(recipe, "--set", f"output={json.dumps(str(whole))}", "--set", "steps=40")
    assert process.wait(300) == 0, process.communicate()[1]
    kill_at(start(recipe, "--set", "steps=40"), tmp_path / "run", 2)
    kill_at(start(recipe, "--set", "steps=40", "--resume"), tmp_path / "run", 9)
    assert not (tmp_path / "run" / "state" / "step-0000040").exists(), "the run ended before it could be killed"
    process = start(recipe, "--set", "steps=40", "--resume")
    assert process.wait(300) == 0, process.communicate()[1]
    assert journal(tmp_path / "run") == journal(whole)
    # The headers differ in the name of the output folder; the weights are compared as they lie in the file.
    tensors = [_tensors(folder / "bridge.safetensors") for folder in (whole, tmp_path / "run")]
    assert tensors[0] == tensors[1]


def _tensors(path: Path) -> bytes:
    data = path.read_bytes()
    return data[8 + int.from_bytes(data[:8], "little") :]


def test_a_second_run_into_the_same_folder_is_refused(recipe: Path) -> None:
    Trainer(read_recipe(recipe, ["steps=2"])).run()
    with pytest.raises(ValueError, match="--resume"):
        Trainer(read_recipe(recipe))


def test_resuming_nothing_is_refused(recipe: Path) -> None:
    with pytest.raises(ValueError, match="nothing to resume"):
        Trainer(read_recipe(recipe), resume=True)


def test_resuming_with_another_rank_is_refused(recipe: Path) -> None:
    Trainer(read_recipe(recipe, ["steps=2"])).run()
    with pytest.raises(ValueError, match="does not fit this recipe"):
        Trainer(read_recipe(recipe, ["vision.rank=3"]), resume=True)
