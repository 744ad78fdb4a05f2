"""Encoding of a data set into the latent cache: pictures are read, put through the VAE and written shard by shard."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from ..models import progress
from ..models.vae import encode, vae_batch_size
from .latent_shard import ShardWriter
from .resize_and_crop import UnreadableImage
from .sources import Example, Shard

log = logging.getLogger(__name__)

MAX_UNREADABLE = 0.05
AHEAD = 4  # pictures that are decoded before the VAE asks for them, for each thread


class Encoding:
    """What the latents are made with. precision: "bf16" puts pictures through the VAE under autocast. flip: mirrored
    pictures are encoded as well. resolution: pictures have at most its square in pixels.
    """

    def __init__(self, vae, precision: str, flip: bool, resolution: int):
        self.vae, self.precision, self.flip = vae, precision, flip
        self.at_once = vae_batch_size(resolution)

    def write(self, work: Sequence[tuple[Shard, Path]], total: int | None, quiet: bool) -> None:
        """Encode each shard into its file. total: pictures of the whole source; None = known once they were read.

        Raises ValueError as soon as too many of them are unreadable.
        """

        unreadable = 0
        mine = pictures([shard for shard, _ in work])
        with progress.bar(total=mine, desc="latents", unit="img", disable=quiet or not work) as bar:
            for shard, path in work:
                writer = self._encode(shard, bar, unreadable, total)
                unreadable += len(writer.unreadable)
                writer.write(path)

    def _encode(self, shard: Shard, bar, before: int, total: int | None) -> ShardWriter:
        """before: unreadable pictures of the shards before."""
        writer = ShardWriter()
        waiting: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
        for place, (example, image) in enumerate(_loaded(shard.read())):
            writer.names.append("" if example.caption is None else example.name)
            writer.captions.append(example.caption or "")
            bar.update()
            if isinstance(image, UnreadableImage):
                writer.unreadable[place] = str(image)
                log.warning("unreadable image %s", image)
                if total is not None and before + len(writer.unreadable) > total * MAX_UNREADABLE:
                    raise too_many(before + len(writer.unreadable), total, _first(writer))
                continue
            group = waiting.setdefault(image.shape, [])
            group.append((place, image))
            if len(group) == self.at_once:
                self._add(waiting.pop(image.shape), writer)
        if total is None and len(writer.unreadable) > len(writer.names) / 2:  # not worth reading another tar
            raise too_many(len(writer.unreadable), len(writer.names), _first(writer), shard.name)
        for group in waiting.values():
            self._add(group, writer)
        return writer

    def _add(self, group: list[tuple[int, np.ndarray]], writer: ShardWriter) -> None:
        pixels = torch.from_numpy(np.stack([image for _, image in group])).permute(0, 3, 1, 2).float() / 127.5 - 1
        device = next(self.vae.parameters()).device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            latents = encode(self.vae, pixels.to(device)).half().cpu()
            flipped = encode(self.vae, pixels.flip(-1).to(device)).half().cpu() if self.flip else None
        writer.add([place for place, _ in group], latents, flipped)


def pictures(shards: Sequence[Shard]) -> int | None:
    """How many they hold in all; None where one has to be read for it."""
    counts = [shard.count for shard in shards if shard.count is not None]
    return sum(counts) if len(counts) == len(shards) else None


def too_many(unreadable: int, count: int, example: str, where: str = "") -> ValueError:
    place = f" in {where}" if where else ""
    return ValueError(
        f"{unreadable} of {count} images{place} are unreadable, more than {MAX_UNREADABLE:.0%} ({example}); mend the "
        "data set or its paths"
    )


def _first(writer: ShardWriter) -> str:
    return next(iter(writer.unreadable.values()))


def _loaded(examples: Iterable[Example]) -> Iterator[tuple[Example, np.ndarray | UnreadableImage]]:
    """Pictures in their order, decoded some way ahead in threads, so that the VAE need not wait for them."""
    threads = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[tuple[Example, Future]] = deque()
        for example in examples:
            ahead.append((example, pool.submit(_load, example)))
            if len(ahead) > AHEAD * threads:
                first, future = ahead.popleft()
                yield first, future.result()
        while ahead:
            first, future = ahead.popleft()
            yield first, future.result()


def _load(example: Example) -> np.ndarray | UnreadableImage:
    try:
        return example.load()
    except UnreadableImage as error:
        return error
