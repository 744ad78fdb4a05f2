"""The cache of VAE latents: each picture is encoded once and read from disk afterwards."""

from __future__ import annotations

import hashlib
import logging
import re
from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ...lavi_core import fingerprint
from ...lavi_core.files import write_text
from .latent_encoding import MAX_UNREADABLE, Encoding, pictures, too_many
from .latent_shard import LatentShard
from .order import Order, held_out
from .ranks import Ranks
from .sources import Captions, IndexedSource, Source

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger(__name__)

FORMAT = 2
SIDES = re.compile(r"\b(left|right|leftmost|rightmost|clockwise|counterclockwise|anticlockwise)\b", re.IGNORECASE)
LOOKED_AT = 10_000


class LatentCache:
    """Raw latents of the readable pictures of a source, float16, a file a shard, named by what it depends on: the
    shard, the VAE, the precision. Pictures are numbered in the order of the source; ``readable[k]`` is where the k-th
    stands among all. Latents, and the names and captions of a source that has no index, stay on disk until asked for.
    """

    def __init__(
        self,
        source: Source,
        vae,
        folder: str | Path,
        report: str | Path | None = None,
        precision: str = "fp32",
        accelerator: Accelerator | None = None,
    ):
        """Encodes what is not on disk yet, in bf16 where ``precision`` says so. accelerator: its processes all come
        here and share the work, shard k is process k's modulo their number, and the folder; None = this process alone.

        Unreadable pictures, those of shards on disk too, are logged, counted and listed in ``report``; more than 5 % of
        them raise ValueError, in every process, as any other one's error does.
        """
        self.source, self.precision = source, precision
        self.flip, self._seed = source.section.flip, source.section.seed
        ranks = Ranks(accelerator)
        shards = source.shards()
        facts = f"{FORMAT} {fingerprint.weights_fingerprint(vae)} {precision} {self.flip}"
        keys = [hashlib.sha256(f"{facts} {shard.print}".encode()).hexdigest()[:24] for shard in shards]
        paths = [Path(folder) / f"latents-{key}.safetensors" for key in keys]
        work = list(zip(shards, paths, strict=True))[ranks.rank :: ranks.world]
        encoding = Encoding(vae, precision, self.flip, source.section.resolution)
        with ranks.together():
            missing = [(shard, path) for shard, path in work if not path.is_file()]
            encoding.write(missing, pictures(shards), quiet=not ranks.main)
        self._shards = [LatentShard(path) for path in ranks.seen(paths)]
        starts = [0, *accumulate(shard.count for shard in self._shards)]
        self.readable = torch.cat([s.places + start for s, start in zip(self._shards, starts, strict=False)])
        self._ends = list(accumulate(map(len, self._shards)))
        self.sizes = sorted({size for shard in self._shards for size in shard.sizes})  # of latents
        self._bucket_of = torch.cat([_renumbered(shard, self.sizes) for shard in self._shards])
        bad = [reason for shard in self._shards for _, reason in sorted(shard.unreadable.items())]
        if ranks.main:
            _report(bad, starts[-1], report)
        if len(bad) > starts[-1] * MAX_UNREADABLE:
            raise too_many(len(bad), starts[-1], bad[0])
        if not len(self):
            raise ValueError(f"no captioned images in {source.section.path}")
        if ranks.main:
            self._warn_of_captions()

    def __len__(self) -> int:
        return len(self.readable)

    def batch(self, indices: Sequence[int], epochs: Sequence[int]) -> tuple[Tensor, list[str]]:
        """(raw latents [B C h w] float32, captions) of pictures of one bucket."""
        pairs = list(zip(indices, epochs, strict=True))
        latents = []
        for index, epoch in pairs:
            shard, row = self._find(index)
            latents.append(shard.latents(row, self.flip and self._flips(index, epoch)))
        return torch.cat(latents).float(), [self.caption(index, epoch) for index, epoch in pairs]

    def caption(self, index: int, epoch: int) -> str:
        if isinstance(self.source, IndexedSource):
            return self.source.caption(int(self.readable[index]), epoch)
        shard, row = self._find(index)
        return shard.caption(row)

    def captions(self, index: int) -> list[str] | None:
        """All that a picture may be captioned with; None where there is no end of them."""
        if isinstance(self.source, IndexedSource):
            return self.source.captions(int(self.readable[index]))
        return [self.caption(index, 0)]

    def plain_caption(self, index: int, epoch: int) -> str:
        if isinstance(self.source, IndexedSource):
            return self.source.plain_caption(int(self.readable[index]), epoch)
        return self.caption(index, epoch)

    def name(self, index: int) -> str:
        if isinstance(self.source, IndexedSource):
            return self.source.name(int(self.readable[index]))
        shard, row = self._find(index)
        return shard.name(row)

    def split(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """(indices to train on, indices held out), [N] int64: a function of ``seed`` and the pictures' names
        alone, of files from the folder of ``data.path`` on. A picture that is listed more than once goes whole, so
        there may be some more than ``count`` of them.
        """
        held = held_out(self._names(), count, seed) if count else set()
        if len(held) >= len(self):
            raise ValueError(f"data.validation holds out {len(held)} of {len(self)} pictures, none is left to train on")
        mask = torch.zeros(len(self), dtype=torch.bool)
        mask[sorted(held)] = True
        everything = torch.arange(len(self))
        return everything[~mask], everything[mask]

    def buckets(self, indices: Tensor | None = None) -> list[Tensor]:
        """``indices`` (None = all) by the size of their latents, those of one size in one tensor; none is empty."""
        chosen = torch.arange(len(self)) if indices is None else indices
        groups = [chosen[self._bucket_of[chosen] == bucket] for bucket in range(len(self.sizes))]
        return [group for group in groups if len(group)]

    def order(self, batch_size: int, seed: int, indices: Tensor | None = None) -> Order:
        """The order in which ``indices`` (None = all) are trained on, each batch of one bucket."""
        return Order(self.buckets(indices), batch_size, seed)

    def texts(self, indices: Tensor | None = None) -> Captions:
        """The captions alone, numbered from 0: of ``indices``, or of the source, its unreadable pictures too."""
        if indices is None or len(indices) == len(self):
            return self.source if isinstance(self.source, IndexedSource) else self
        return _Part(self, indices)

    def names(self, indices: Collection[int]) -> list[str]:
        """What the pictures at ``indices`` are held out by, in the data's order."""
        wanted = set(indices)
        if isinstance(self.source, IndexedSource):
            return [self.source.place(int(self.readable[index])) for index in sorted(wanted)]
        return [name for index, name in enumerate(self._names()) if index in wanted]

    def _names(self) -> Iterable[str]:
        if isinstance(self.source, IndexedSource):
            return map(self.source.place, self.readable.tolist())
        return chain.from_iterable(shard.names() for shard in self._shards if len(shard))

    def _find(self, index: int) -> tuple[LatentShard, int]:
        shard = bisect_right(self._ends, index)
        return self._shards[shard], index - (self._ends[shard - 1] if shard else 0)

    def _flips(self, index: int, epoch: int) -> bool:
        return bool(np.random.default_rng([self._seed, 2, index, epoch]).integers(2))

    def _warn_of_captions(self) -> None:
        """Of empty ones, and of those that mirrored pictures belie."""
        looked = range(0, len(self), -(-len(self) // LOOKED_AT))
        captions = [self.caption(i, 0) for i in looked]
        if empty := sum(not text.strip() for text in captions):
            log.warning("%d of %d captions are empty: they are trained on as the empty prompt", empty, len(looked))
        found = [text for text in captions if SIDES.search(text)]
        if found and self.flip:
            log.warning(
                "data.flip mirrors pictures, but %d of %d captions tell left from right, such as %r; set data.flip = "
                "false unless that does not matter",
                len(found),
                len(looked),
                found[0],
            )


class _Part:
    """The captions of some pictures."""

    def __init__(self, latents: LatentCache, indices: Tensor):
        self.latents, self.indices = latents, indices.tolist()

    def __len__(self) -> int:
        return len(self.indices)

    def caption(self, index: int, epoch: int) -> str:
        return self.latents.caption(self.indices[index], epoch)

    def plain_caption(self, index: int, epoch: int) -> str:
        return self.latents.plain_caption(self.indices[index], epoch)


def _renumbered(shard: LatentShard, sizes: list) -> Tensor:
    return torch.tensor([sizes.index(size) for size in shard.sizes], dtype=torch.int64)[shard.kinds]


def _report(bad: list[str], count: int, path: str | Path | None) -> None:
    if bad:
        log.warning("%d of %d images are unreadable and left out, the first: %s", len(bad), count, bad[0])
    if path is not None and bad:
        write_text(path, "".join(f"{line}\n" for line in bad))
    elif path is not None:
        Path(path).unlink(missing_ok=True)
