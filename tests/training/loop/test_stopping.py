"""SIGTERM and Ctrl-C finish the step in hand, save, and leave; resumed, the run ends as one that was never stopped."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from lavi_bridge.lavi_core.checkpoint import BridgeCheckpoint
from lavi_bridge.tests.training.forks import Server
from lavi_bridge.training.loop import stopping
from lavi_bridge.training.loop.checkpoint import states
from lavi_bridge.training.loop.stopping import Stopped, StopSignals

pytestmark = pytest.mark.usefixtures("on_cpu")

LONG = ["steps=400", "save_every=1000", "trackers=[]"]  # no state but the one that the signal asks for


def until_it_trains(output: Path) -> None:
    deadline = time.monotonic() + 60
    while not (output / "state" / "step-0000000").is_dir():
        assert time.monotonic() < deadline, "the run did not begin"
        time.sleep(0.01)
    time.sleep(0.3)


def stepped(output: Path) -> list[tuple[float, float]]:
    return [(line["loss"], line["norm"]) for line in map(json.loads, (output / "log.jsonl").read_text().splitlines())]


@pytest.mark.parametrize(
    ("signum", "status", "world"), [(signal.SIGTERM, 143, 1), (signal.SIGINT, 130, 1), (signal.SIGTERM, 143, 2)]
)
def test_a_signal_saves_and_leaves(
    signum: int, status: int, world: int, server: Server, recipe: Path, tmp_path: Path
) -> None:
    """Of two processes one is told, the last; both stop at the same step."""
    output = tmp_path / "run"
    processes = server.start(recipe, LONG, world)
    until_it_trains(output)
    os.kill(processes[-1], signum)
    assert server.wait() == [status] * world, server.said()
    begun, saved = states(output / "state")
    step = json.loads((saved / "state.json").read_text())["step"]
    assert begun.name == "step-0000000" and 0 < step < 400
    assert len(stepped(output)) == step
    assert BridgeCheckpoint.load(output / "bridge.safetensors").config.provenance["step"] == step
    if world == 1:
        on = [*LONG, f"steps={step + 2}"]
        assert server.run(recipe, on, resume=True) == [0]
        whole = tmp_path / "whole"
        assert server.run(recipe, [*on, f"output={json.dumps(str(whole))}"]) == [0]
        assert stepped(output) == stepped(whole) and len(stepped(whole)) == step + 2


def test_a_second_signal_leaves_at_once_and_an_echo_of_the_first_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    raised = []
    monkeypatch.setattr(signal, "raise_signal", raised.append)
    clock = iter([10.0, 10.5, 11.5])
    monkeypatch.setattr(stopping.time, "monotonic", lambda: next(clock))
    before = [signal.getsignal(number) for number in stopping.SIGNALS]
    with StopSignals() as signals:
        assert signals.asked == 0
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.asked == signal.SIGINT and not raised
        os.kill(os.getpid(), signal.SIGTERM)
        assert raised == [signal.SIGTERM] and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert [signal.getsignal(number) for number in stopping.SIGNALS] == before


def test_only_the_main_thread_takes_signals() -> None:
    found = []

    def enter() -> None:
        with StopSignals():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    before = signal.getsignal(signal.SIGTERM)
    thread.start()
    thread.join()
    assert found == [before]


def test_the_exit_status_is_the_shells() -> None:
    with pytest.raises(SystemExit) as left:
        raise Stopped(signal.SIGTERM)
    assert left.value.code == 143
