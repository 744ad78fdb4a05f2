"""Bootstrap intervals of a mean over pictures, prompts drawn again rather than pictures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

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
    rng, means = stream(seed, "bootstrap"), []
    while len(means) < SAMPLES:
        rows = min(SAMPLES - len(means), max(1, AT_ONCE // len(total)))
        drawn = rng.multinomial(len(total), np.full(len(total), 1 / len(total)), size=rows)
        means += (drawn @ total / (drawn @ number)).tolist()
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
