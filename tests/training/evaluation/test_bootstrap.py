"""The bootstrap against the normal interval, which it must meet where both hold."""

from __future__ import annotations

import numpy as np
import pytest
from lavi_bridge.training.evaluation.bootstrap import interval


def test_of_many_prompts_it_is_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(3, 2, 2000)
    low, high = interval(values.tolist(), range(2000))
    error = 1.96 * values.std() / 2000**0.5
    assert (low, high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.1 * error)


def test_more_pictures_of_the_same_prompts_are_no_more_prompts() -> None:
    values = np.random.default_rng(1).normal(0, 1, 100).tolist()
    prompts = list(range(100))
    once, often = interval(values, prompts), interval(values * 9, prompts * 9)
    assert often == pytest.approx(once)
    low, high = interval(values * 9, range(900))  # as if they were
    assert high - low == pytest.approx((once[1] - once[0]) / 3, rel=0.15)


def test_prompts_with_more_pictures_weigh_more() -> None:
    low, high = interval([1.0] * 9 + [0.0], ["a"] * 9 + ["b"])
    assert (low, high) == (0.0, 1.0)  # one of the two alone, in a quarter of the draws each
