"""The shipped configs through accelerate's own launcher, with CPUs for GPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from lavi_bridge.training import parallel

TIMEOUT = 300  # seconds; a process that was left alone would wait for 30 minutes
LAUNCH = Path(parallel.__file__).parent / "launch"


def launch(recipe: Path, output: Path, *changes: str) -> subprocess.CompletedProcess[str]:
    """Two processes, with a precision and an accumulation that are not the recipe's."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(LAUNCH / "ddp.yaml"), "--cpu"]
    command += ["--num_processes", "2", "--num_cpu_threads_per_process", "1", "--main_process_port", "0"]
    command += ["--mixed_precision", "bf16", "--gradient_accumulation_steps", "4", "-m", "lavi_bridge.training"]
    command.append(str(recipe))
    for change in ("steps=2", "trackers=[]", f"output={json.dumps(str(output))}", *changes):
        command += ["--set", change]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT, env={**os.environ, "PYTHONPATH": ""}
    )


def test_the_ddp_config_trains_on_two_processes(recipe: Path, tmp_path: Path) -> None:
    result = launch(recipe, tmp_path / "run")
    assert result.returncode == 0, result.stderr[-2000:]
    assert (tmp_path / "run" / "bridge.safetensors").is_file()
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["precision"] == "fp32"


def test_a_process_that_fails_takes_the_others_with_it(recipe: Path, tmp_path: Path) -> None:
    """Rank 0 cannot write; the other would wait for it in the first collective operation."""
    (tmp_path / "run").write_text("a file")
    result = launch(recipe, tmp_path / "run")
    assert result.returncode != 0 and "nothing can be written to the output" in result.stderr


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "deepspeed_zero2"])
def test_a_config_says_how_it_is_used(name: str) -> None:
    text = (LAUNCH / f"{name}.yaml").read_text()
    assert f"accelerate launch --config_file training/launch/{name}.yaml -m lavi_bridge.training RECIPE.toml" in text
