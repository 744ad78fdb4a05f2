"""Two trainers in one output folder, and what a killed one leaves behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from lavi_bridge.training.loop.lock import held
from lavi_bridge.training.loop.trainer import Trainer
from lavi_bridge.training.recipe import read_recipe

pytestmark = pytest.mark.usefixtures("on_cpu")

HOLD = """
import os, pathlib, sys, time
sys.path.insert(0, sys.argv[2])
import conftest
from lavi_bridge.training.loop.lock import held
with held(sys.argv[1]):
    worker = os.fork() if hasattr(os, "fork") else 1  # as a loader's worker, which outlives its trainer
    if worker:
        print(os.getpid(), worker, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run"), str(Path(__file__).parents[2])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        mine, worker = map(int, process.stdout.readline().split())
        assert mine == process.pid
        yield process
        process.kill()
        if worker != 1:
            import os

            os.kill(worker, signal.SIGKILL)


def test_a_second_trainer_is_refused_until_the_first_is_gone(
    holder: subprocess.Popen, recipe: Path, tmp_path: Path
) -> None:
    for resume in (False, True):
        with pytest.raises(ValueError, match=rf"another trainer is at work in .*run \(process {holder.pid} on "):
            Trainer(read_recipe(recipe), resume=resume)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock"]
    holder.kill()
    holder.wait()  # its worker still lives
    Trainer(read_recipe(recipe))
    assert (tmp_path / "run" / "recipe.json").is_file()


def test_a_folder_is_free_again_after_its_trainer_ends(tmp_path: Path) -> None:
    for _ in range(2):
        with held(tmp_path), held(tmp_path / "other"):
            pass


def test_an_output_that_cannot_be_written_is_said_at_once(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(ValueError, match=r"nothing can be written to the output .*run .*; set another output"):
        Trainer(read_recipe(recipe, ["language.model=/nowhere"]))  # before any model is looked for
