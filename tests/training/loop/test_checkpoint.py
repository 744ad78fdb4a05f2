"""What a state keeps, which states are kept, and what is left when writing one fails."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lavi_bridge.training.loop import checkpoint
from torch import nn


def parameters() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(3, 2, generator=generator)) for name in ("one", "two")}


def stepped(trained: dict[str, nn.Parameter], steps: int) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(trained.values(), lr=0.1)
    for step in range(steps):
        for p in trained.values():
            p.grad = torch.full_like(p, 1.0 + step)
        optimizer.step()
    return optimizer


def test_a_loaded_state_goes_on_to_the_bit(tmp_path: Path) -> None:
    trained = parameters()
    optimizer = stepped(trained, 3)
    average = {"average:one": torch.tensor([1.5, 2.5])}
    path = checkpoint.save(tmp_path, 3, trained, optimizer, 2, {"identity": {"seed": 1}}, extra=average)
    other = {key: nn.Parameter(torch.zeros_like(p)) for key, p in trained.items()}
    resumed = torch.optim.AdamW(other.values(), lr=0.1)
    step, extra = checkpoint.load(path, other, resumed, {"seed": 1})
    assert step == 3 and extra.keys() == average.keys() and torch.equal(extra["average:one"], average["average:one"])
    for both, optim in ((trained, optimizer), (other, resumed)):
        for p in both.values():
            p.grad = torch.ones_like(p)
        optim.step()
    assert all(torch.equal(trained[key], other[key]) for key in trained)
    assert (resumed.state[other["one"]]["exp_avg"] != 0).all()


def test_the_newest_and_every_so_many_are_kept(tmp_path: Path) -> None:
    trained = parameters()
    optimizer = stepped(trained, 1)
    for step in range(0, 10):
        checkpoint.save(tmp_path, step, trained, optimizer, 2, {}, keep_every=4)
    assert [int(path.name.split("-")[1]) for path in checkpoint.states(tmp_path)] == [4, 8, 9]
    assert len(list(tmp_path.iterdir())) == 3
    checkpoint.save(tmp_path, 10, trained, optimizer, 1, {})
    assert [path.name for path in checkpoint.states(tmp_path)] == ["step-0000010"]


def test_a_state_is_never_written_twice(tmp_path: Path) -> None:
    """A kill between the deletion of the one and the arrival of the other would leave none."""
    trained = parameters()
    optimizer = stepped(trained, 1)
    path = checkpoint.save(tmp_path, 1, trained, optimizer, 1, {})
    before = (path / "weights.safetensors").stat().st_mtime_ns
    checkpoint.save(tmp_path, 1, trained, optimizer, 1, {})
    assert (path / "weights.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors", "extra.safetensors", "state.json"])
def test_a_full_disk_at_any_file_leaves_the_states_of_before(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = parameters()
    optimizer = stepped(trained, 1)
    kept = checkpoint.save(tmp_path, 1, trained, optimizer, 1, {}, extra={"a": torch.ones(1)})
    before = {path.name: path.read_bytes() for path in kept.iterdir()}
    assert file in before
    for name in ("write_safetensors", "write_text"):
        write = getattr(checkpoint, name)

        def full(path: Path, *rest, write=write) -> None:
            if path.name == file:
                raise OSError(28, "No space left on device")
            write(path, *rest)

        monkeypatch.setattr(checkpoint, name, full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path, 2, trained, optimizer, 1, {}, extra={"a": torch.ones(1)})
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000001"]
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before


def test_what_is_half_done_is_no_state_and_is_swept(tmp_path: Path) -> None:
    trained = parameters()
    folder = tmp_path / "state"
    whole = checkpoint.save(folder, 1, trained, stepped(trained, 1), 1, {})
    for name in (".step-0000002.part", ".step-0000000.gone"):
        (folder / name).mkdir()
        (folder / name / "state.json").write_text("{}")
    (folder / "step-0000003").mkdir()  # without its last file
    (tmp_path / ".bridge.safetensors.77.part").write_text("half")
    (tmp_path / "bridge.safetensors").write_text("whole")
    assert checkpoint.states(folder) == [whole]
    checkpoint.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bridge.safetensors", "state"]
    assert sorted(path.name for path in folder.iterdir()) == ["step-0000001", "step-0000003"]


def test_tensors_that_share_memory_are_written_apart(tmp_path: Path) -> None:
    """As the map of 8-bit moments, which all parameters share."""
    trained = parameters()
    optimizer = stepped(trained, 1)
    shared = torch.arange(4.0)
    for p in trained.values():
        optimizer.state[p]["qmap1"] = shared
    path = checkpoint.save(tmp_path, 1, trained, optimizer, 1, {})
    other = {key: nn.Parameter(torch.zeros_like(p)) for key, p in trained.items()}
    resumed = torch.optim.AdamW(other.values(), lr=0.1)
    checkpoint.load(path, other, resumed, {})
    assert all(torch.equal(resumed.state[p]["qmap1"], shared) for p in other.values())
