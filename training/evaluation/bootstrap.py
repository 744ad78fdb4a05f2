"""Bootstrap intervals of a mean over pictures, prompts drawn again rather than pictures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from functools import lru_cache

import numpy as np

from ..shapebench.bench import stream

SAMPLES = 2000
AT_ONCE = 2**22  # numbers of a draw that are held in memory


def interval(values: Sequence[float], prompts: Sequence[Hashable], seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of ``values``, prompts[i] being what values[i] is a picture of.

    The pictures of one prompt (other seeds) are not independent: they are drawn, or left out, together.
    """
    sums: dict[Hashable, float] = defaultdict(float)
    counts: dict[Hashable, int] = defaultdict(int)
    for value, prompt in zip(values, prompts, strict=True):
        sums[prompt] += value
        counts[prompt] += 1
    total, number = np.array(list(sums.values())), np.array(list(counts.values()), float)
    draws = _kept_draws if SAMPLES * len(total) <= AT_ONCE else _draws
    means = np.concatenate([drawn @ total / (drawn @ number) for drawn in draws(len(total), seed)])
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def _draws(count: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of ``count`` prompts is drawn, int64 [samples, count], ``SAMPLES`` in all."""
    rng, left = stream(seed, "bootstrap"), SAMPLES
    while left:
        rows = min(left, max(1, AT_ONCE // count))
        yield rng.multinomial(count, np.full(count, 1 / count), size=rows)
        left -= rows


@lru_cache(maxsize=4)
def _kept_draws(count: int, seed: int) -> tuple[np.ndarray, ...]:
    return tuple(_draws(count, seed))
