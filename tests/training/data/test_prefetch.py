"""Batches made ahead of their step."""

from __future__ import annotations

import threading
import time
import traceback

import pytest
from lavi_bridge.training.data import Prefetch


def test_batches_come_in_order_and_no_more_than_asked_for_are_ahead() -> None:
    made = []

    def make(step: int) -> int:
        made.append(step)
        return step * step

    with Prefetch(make, 5, ahead=3) as ahead:
        assert [next(ahead) for _ in range(4)] == [25, 36, 49, 64]
        time.sleep(0.1)
        assert made == [*range(5, 12)]


def test_the_next_batch_is_made_while_one_is_trained_on() -> None:
    asked, go_on = threading.Event(), threading.Event()

    def make(step: int) -> int:
        if step == 1:
            asked.set()
            assert go_on.wait(10)
        return step

    with Prefetch(make, 0) as ahead:
        assert next(ahead) == 0 and asked.wait(10)  # it is being made, and was not waited for
        waited = ahead.waited
        threading.Timer(0.2, go_on.set).start()
        assert next(ahead) == 1
        assert ahead.waited - waited > 0.1


def test_an_error_is_raised_at_its_step_with_where_it_came_from() -> None:
    def make(step: int) -> int:
        if step == 2:
            raise ValueError("picture 7 is gone")
        return step

    with Prefetch(make, 0, ahead=4) as ahead, pytest.raises(ValueError, match="picture 7 is gone") as caught:
        assert [next(ahead), next(ahead)] == [0, 1]
        next(ahead)
    assert "in make" in "".join(traceback.format_tb(caught.tb))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_the_thread_ends_however_the_run_does(error: type[BaseException]) -> None:
    started, made = threading.Event(), []

    def make(step: int) -> int:
        made.append(step)
        started.set()
        time.sleep(0.05)
        return step

    with pytest.raises(error), Prefetch(make, 0, ahead=100):
        assert started.wait(10)
        raise error
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
    assert len(made) < 20  # what was not begun was given up


def test_nothing_is_made_beyond_the_last() -> None:
    made: list[int] = []

    def make(step: int) -> int:
        made.append(step)
        return step

    with Prefetch(make, 2, ahead=4, stop=5) as ahead:
        assert list(ahead) == [2, 3, 4]
    assert made == [2, 3, 4]
