"""Two processes train as one, whole (DDP) or sharded (FSDP2): the gradients of every parameter, losses, states.

The processes are forked on this machine and talk over gloo.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lavi_bridge.tests.training.forks import Server
from lavi_bridge.training.files import read_safetensors
from safetensors import safe_open

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}
# Dropout draws on each process by itself: two processes cannot drop what one does.
QUIET = ["language.dropout=0.0", "vision.dropout=0.0", "adapter.kind=linear", "precision=fp32", "trackers=[]"]

Run = Callable[..., list[int]]


@pytest.fixture
def run(server: Server, recipe: Path, tmp_path: Path) -> Run:
    """Trains the tiny recipe on ``world`` processes into tmp_path/name; their exit statuses."""

    def start(name: str, world: int, *changes: str, **line: Any) -> list[int]:
        changes = (*QUIET, *changes, f"output={json.dumps(str(tmp_path / name))}")
        return server.run(recipe, changes, world, gradients=str(tmp_path / f"{name}-gradients"), **line)

    return start


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def assert_same_gradients(one: Path, other: Path, processes: int = 1) -> None:
    """Of every parameter, on every process, to rounding."""
    expected = read_safetensors(one / "rank0.safetensors")
    assert len(expected) > 60 and sum(bool(value.any()) for value in expected.values()) > len(expected) / 2
    # A shift of all of a channel before a group norm of one channel has no gradient but rounding.
    rounding = 1e-7 * torch.stack([value.norm() for value in expected.values()]).norm()
    for rank in range(processes):
        found = read_safetensors(other / f"rank{rank}.safetensors")
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            error = (found[key] - value).norm()
            assert error < 1e-4 * value.norm() + rounding, f"{key} of rank {rank}: {error:.1e} of {value.norm():.1e}"


def share(gradients: Path) -> float:
    """Of the frozen weights, on rank 0."""
    with safe_open(gradients / "rank0.safetensors", "pt") as file:
        return float(file.metadata()["share"])


@pytest.mark.parametrize("changes", [(), ("accumulation=2", "gradient_checkpointing=true")], ids=["plain", "parts"])
def test_two_processes_whole_or_sharded_have_the_gradients_of_one(
    changes: tuple[str, ...], run: Run, tmp_path: Path
) -> None:
    assert run("one", 1, *changes) == [0]
    assert run("ddp", 2, *changes) == [0, 0]
    assert run("fsdp", 2, *changes, environment=FSDP) == [0, 0]
    for name in ("ddp", "fsdp"):
        assert_same_gradients(tmp_path / "one-gradients", tmp_path / f"{name}-gradients", 2)
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
        assert len(losses(tmp_path / name)) == 6
    assert [share(tmp_path / f"{name}-gradients") for name in ("one", "ddp")] == [1, 1]
    assert share(tmp_path / "fsdp-gradients") < 0.52
