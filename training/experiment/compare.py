"""Figures with confidence intervals, and verdicts on claims, from the scores of single pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..evaluation.bootstrap import interval
from .result import Result


@dataclass(frozen=True)
class Figure:
    """mean, and its 95 % bootstrap interval over prompts: a prompt is drawn with the pictures of all seeds. seeds: the
    mean of each seed."""

    mean: float
    low: float
    high: float
    seeds: tuple[float, ...]


def share(results: Sequence[Result], categories: Sequence[str]) -> Figure:
    """The share of right pictures, all categories weighing alike (each has as many prompts)."""
    return _figure([_answers(result, categories) for result in results])


def difference(better: Sequence[Result], worse: Sequence[Result], categories: Sequence[str]) -> Figure:
    """better - worse, prompt by prompt, of the runs that ``paired`` gives."""
    return _figure([_answers(a, categories) - _answers(b, categories) for a, b in paired(better, worse)])


def nearer(better: Sequence[Result], worse: Sequence[Result]) -> Figure:
    """How much smaller the distance of ``better`` is. A distance is one number of a whole run: low and high are the
    lowest and the highest of the runs that ``paired`` gives."""
    each = [b.distance - a.distance for a, b in paired(better, worse)]
    return Figure(float(np.mean(each)), min(each), max(each), tuple(each))


def paired(better: Sequence[Result], worse: Sequence[Result]) -> list[tuple[Result, Result]]:
    """Of seeds that both have, or of a row that no training gives seeds with each of the other's."""
    if not better[0].steps or not worse[0].steps:
        return [(a, b) for a in better for b in worse]
    first, second = ({result.seed: result for result in side} for side in (better, worse))
    pairs = [(first[seed], second[seed]) for seed in sorted(first.keys() & second.keys())]
    if not pairs:
        raise ValueError(f"{better[0].row} and {worse[0].row} have no seed in common to be compared by")
    return pairs


def verdict(found: Figure) -> str:
    """ "holds": the interval lies above zero and so does every seed; "reversed": both lie below; else "not decided"."""
    if found.low > 0 and min(found.seeds) > 0:
        return "holds"
    if found.high < 0 and max(found.seeds) < 0:
        return "reversed"
    return "not decided"


def _answers(result: Result, categories: Sequence[str]) -> np.ndarray:
    return np.concatenate([np.array(result.correct[name], np.float64) for name in categories])


def _figure(rows: Sequence[np.ndarray]) -> Figure:
    table = np.stack(rows)  # [seeds prompts]
    prompts = [i for _ in rows for i in range(table.shape[1])]
    low, high = interval(table.ravel().tolist(), prompts)
    return Figure(float(table.mean()), low, high, tuple(table.mean(1).tolist()))
