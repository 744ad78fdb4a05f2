"""The order that examples are seen in: a function of (seed, step) alone, so that a resumed run sees the same."""

from __future__ import annotations

import torch


class Order:
    """Each epoch is one permutation of ``count`` examples; batches run on across its end."""

    def __init__(self, count: int, batch_size: int, seed: int):
        if count < 1:
            raise ValueError("the data set is empty: there is nothing to train on")
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self._epoch: tuple[int, torch.Tensor] | None = None

    def batch(self, step: int) -> tuple[list[int], list[int]]:
        """(indices, epochs) of the global batch of ``step``."""
        places = range(step * self.batch_size, (step + 1) * self.batch_size)
        epochs = [place // self.count for place in places]
        return [int(self._permutation(e)[p % self.count]) for p, e in zip(places, epochs, strict=True)], epochs

    def _permutation(self, epoch: int) -> torch.Tensor:
        if self._epoch is None or self._epoch[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch = (epoch, torch.randperm(self.count, generator=generator))
        return self._epoch[1]
