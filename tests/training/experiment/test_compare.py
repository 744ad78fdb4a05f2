"""Figures of an experiment against what can be counted by hand."""

from __future__ import annotations

import pytest
from lavi_bridge.training.experiment.compare import Figure, difference, nearer, share, verdict
from lavi_bridge.training.experiment.result import Result


def result(row: str, seed: int, distance: float = 0.0, steps: int = 1, **correct: tuple[int, ...]) -> Result:
    return Result(
        row=row,
        seed=seed,
        settings={},
        correct=correct,
        aspects={},
        distance=distance,
        trained={},
        steps=steps,
        batch_size=1,
        seconds=0.0,
        loss=None,
        environment={},
    )


def test_a_share_counts_all_seeds_and_categories() -> None:
    found = share([result("a", 1, x=(1, 0), y=(1, 1)), result("a", 2, x=(0, 0), y=(1, 0))], ["x", "y"])
    assert found.mean == 4 / 8 and found.seeds == (3 / 4, 1 / 4)
    assert found.low < 0.5 < found.high
    assert share([result("a", 1, x=(1, 0), y=(1, 1))], ["x"]).mean == 1 / 2


def test_prompts_that_all_rows_find_hard_do_not_widen_a_difference() -> None:
    half = tuple(i % 2 for i in range(40))
    all_but_one = (*half[:-1], 0)  # differs in one prompt of forty
    found = difference([result("a", 1, x=half)], [result("b", 1, x=all_but_one)], ["x"])
    assert found.mean == 1 / 40 and found.low == 0 and found.high < 0.1
    apart = share([result("a", 1, x=half)], ["x"])
    assert apart.high - apart.low > 0.25  # the share itself is far less sure


def test_seeds_are_paired() -> None:
    a = [result("a", 1, x=(1, 1)), result("a", 2, x=(0, 1)), result("a", 3, x=(1, 1))]
    b = [result("b", 2, x=(0, 0)), result("b", 1, x=(0, 1))]
    assert difference(a, b, ["x"]).seeds == (1 / 2, 1 / 2)
    assert difference(a, [result("own", 1, steps=0, x=(1, 0))], ["x"]).seeds == (1 / 2, 0.0, 1 / 2)
    assert difference(a, b[:1], ["x"]).seeds == (1 / 2,)  # of a row whose other seeds are still to come
    with pytest.raises(ValueError, match="no seed in common"):
        difference(a[:2], [result("c", 3, x=(1, 1)), result("c", 4, x=(1, 1))], ["x"])


def test_nearer_is_the_smaller_distance() -> None:
    a = [result("a", seed, distance) for seed, distance in ((1, 2.0), (2, 3.0))]
    b = [result("b", seed, distance) for seed, distance in ((2, 3.5), (1, 5.0))]
    assert nearer(a, b) == Figure(1.75, 0.5, 3.0, (3.0, 0.5))
    assert verdict(nearer(a, b)) == "holds" and verdict(nearer(b, a)) == "reversed"


@pytest.mark.parametrize(
    ("figure", "word"),
    [
        (Figure(0.2, 0.1, 0.3, (0.1, 0.3)), "holds"),
        (Figure(0.2, 0.1, 0.3, (-0.1, 0.5)), "not decided"),
        (Figure(0.2, -0.1, 0.3, (0.2, 0.2)), "not decided"),
        (Figure(-0.2, -0.3, -0.1, (-0.1, -0.3)), "reversed"),
    ],
)
def test_a_claim_needs_the_interval_and_every_seed(figure: Figure, word: str) -> None:
    assert verdict(figure) == word
