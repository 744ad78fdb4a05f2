"""The order that examples are seen in: a function of (seed, step) alone, so that a resumed run sees the same."""

from __future__ import annotations

import hashlib
import heapq
import logging
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

log = logging.getLogger(__name__)

BLOCK = 1024  # steps over which the draws of buckets are spread evenly


class Order:
    """Of each bucket an endless row of permutations, of which batches are cut one after the other, across their ends.

    The bucket of a step is drawn with its share of all examples as the weight, so that all are seen equally often. The
    draws of ``BLOCK`` steps are stratified: each bucket gets its share of them, but for one.
    """

    def __init__(self, buckets: int | Sequence[Tensor], batch_size: int, seed: int):
        """buckets: how many examples there are, or the indices of each bucket's."""
        self.buckets = [torch.arange(buckets)] if isinstance(buckets, int) else list(buckets)
        self.count, self.batch_size, self.seed = sum(map(len, self.buckets)), batch_size, seed
        if self.count < 1:
            raise ValueError("the data set is empty: there is nothing to train on")
        small = [bucket for bucket in self.buckets if len(bucket) < batch_size]
        if small and len(self.buckets) > 1:
            log.warning(
                "%d pictures lie in %d buckets that are smaller than a batch of %d, where they come several times; a "
                "larger data.bucket_step makes fewer buckets",
                sum(map(len, small)),
                len(small),
                batch_size,
            )
        shares = torch.tensor([len(bucket) for bucket in self.buckets], dtype=torch.float64) / self.count
        self._limits = shares.cumsum(0)[:-1]
        self._epoch: dict[int, tuple[int, Tensor]] = {}
        self._draws: tuple[int, Tensor] | None = None
        self._drawn = [torch.zeros(len(self.buckets), dtype=torch.int64)]  # before each block

    def batch(self, step: int) -> tuple[list[int], list[int]]:
        """(indices, epochs) of the global batch of ``step``, all of one bucket, whose own rounds the epochs are."""
        bucket, turn = self._turn(step)
        members = self.buckets[bucket]
        places = range(turn * self.batch_size, (turn + 1) * self.batch_size)
        epochs = [place // len(members) for place in places]
        rows = [int(self._permutation(bucket, e)[p % len(members)]) for p, e in zip(places, epochs, strict=True)]
        return members[rows].tolist(), epochs

    def _turn(self, step: int) -> tuple[int, int]:
        """(the bucket of a step, how often it was drawn before)."""
        if len(self.buckets) == 1:
            return 0, step
        block, place = divmod(step, BLOCK)
        while len(self._drawn) <= block:
            draws = self._draw(len(self._drawn) - 1)
            self._drawn.append(self._drawn[-1] + torch.bincount(draws, minlength=len(self.buckets)))
        draws = self._draw(block)
        bucket = int(draws[place])
        return bucket, int(self._drawn[block][bucket]) + int((draws[:place] == bucket).sum())

    def _draw(self, block: int) -> Tensor:  # [BLOCK] int64
        if self._draws is None or self._draws[0] != block:
            generator = self._generator(block, salt=-1)
            uniform = torch.randperm(BLOCK, generator=generator) + torch.rand(BLOCK, generator=generator)
            self._draws = block, torch.bucketize(uniform.double() / BLOCK, self._limits, right=True)
        return self._draws[1]

    def _permutation(self, bucket: int, epoch: int) -> Tensor:
        if bucket not in self._epoch or self._epoch[bucket][0] != epoch:
            generator = self._generator(epoch, salt=bucket)
            self._epoch[bucket] = epoch, torch.randperm(len(self.buckets[bucket]), generator=generator)
        return self._epoch[bucket][1]

    def _generator(self, number: int, salt: int) -> torch.Generator:
        # torch keeps 32 bits of a seed; the odd factor spreads the salt over all of them.
        return torch.Generator().manual_seed((self.seed * 1_000_003 + number + salt * 0x9E3779B1) % 2**63)


def held_out(names: Iterable[str], count: int, seed: int) -> set[int]:
    """Indices of the ``count`` names that come first by their hash with ``seed``, and of all that are named alike."""
    hashes = [hashlib.sha256(f"{seed}\0{name}".encode()).digest()[:16] for name in names]
    first = heapq.nsmallest(count, hashes)
    return {index for index, found in enumerate(hashes) if first and found <= first[-1]}
