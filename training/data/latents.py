"""Latents of a source, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import logging
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from ...lavi_core import fingerprint
from ..files import write_safetensors, write_text
from ..vision_model import encode, pictures_at_once
from .sources import Source, UnreadableImage

log = logging.getLogger(__name__)

SHARD = 2048
MAX_UNREADABLE = 0.05


class LatentCache:
    """Raw latents of the readable pictures of a source, float16, in shards of a folder named by what they depend on:
    source, VAE and shard. ``readable[k]`` is the source index of the k-th latent. Latents stay on disk until a batch
    asks for them.
    """

    def __init__(
        self, source: Source, vae, folder: str | Path, report: str | Path | None = None, precision: str = "fp32"
    ):
        """Encodes what is not on disk yet, in bf16 where ``precision`` says so. Unreadable pictures, those of shards on
        disk too, are logged, counted and listed in ``report``; more than 5 % of them raise ValueError.
        """
        from tqdm import tqdm

        self.source, self.precision = source, precision
        vae_print = fingerprint.weights_print(vae) + precision
        count = len(source)
        paths: list[Path] = []
        reasons: dict[int, str] = {}
        starts = range(0, count, SHARD)
        for start in tqdm(starts, desc="latents", disable=len(starts) < 2, mininterval=2):
            stop = min(start + SHARD, count)
            key = hashlib.sha256(f"{source.fingerprint}{vae_print}{start}-{stop}".encode()).hexdigest()[:24]
            path = Path(folder) / f"latents-{key}.safetensors"
            if not path.is_file():
                write_safetensors(path, self._encode(source, vae, range(start, stop), reasons, count))
            paths.append(path)
        self.readable, self._shards, self._ends = _open(paths)
        bad = [reasons.get(i, source.name(i)) for i in sorted(set(range(count)) - set(self.readable.tolist()))]
        if bad:
            if report is not None:
                write_text(report, "".join(f"{line}\n" for line in bad))
            log.warning("%d of %d images are unreadable and left out, the first: %s", len(bad), count, bad[0])
        if len(bad) > count * MAX_UNREADABLE:
            raise _too_many(len(bad), count, bad[0])

    def _encode(self, source: Source, vae, indices: range, reasons: dict[int, str], count: int) -> dict[str, Tensor]:
        latents, readable = [], []
        part = pictures_at_once(source.resolution)
        for begin in range(indices.start, indices.stop, part):
            images = []
            for index in range(begin, min(begin + part, indices.stop)):
                try:
                    images.append(source.image(index))
                    readable.append(index)
                except UnreadableImage as error:
                    reasons[index] = str(error)
                    log.warning("unreadable image %s", error)
                    if len(reasons) > count * MAX_UNREADABLE:
                        raise _too_many(len(reasons), count, next(iter(reasons.values()))) from None
            if images:
                pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
                device = next(vae.parameters()).device
                with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                    latents.append(encode(vae, pixels.to(device)).half().cpu())
        found = torch.cat(latents) if latents else torch.zeros(0, dtype=torch.float16)
        return {"latents": found, "readable": torch.tensor(readable, dtype=torch.int64)}

    def __len__(self) -> int:
        return len(self.readable)

    def batch(self, indices: Sequence[int], epochs: Sequence[int]) -> tuple[Tensor, list[str]]:
        """(raw latents [B C h w] float32, captions)."""
        captions = [self.source.caption(int(self.readable[i]), e) for i, e in zip(indices, epochs, strict=True)]
        return torch.cat([self._latent(i) for i in indices]).float(), captions

    def _latent(self, index: int) -> Tensor:  # [1 C h w]
        shard = bisect_right(self._ends, index)
        row = index - (self._ends[shard - 1] if shard else 0)
        return self._shards[shard][row : row + 1]


def _too_many(unreadable: int, count: int, example: str) -> ValueError:
    return ValueError(
        f"{unreadable} of {count} images are unreadable, more than {MAX_UNREADABLE:.0%} ({example}); mend the data set "
        "or its paths"
    )


def _open(paths: list[Path]) -> tuple[Tensor, list[Any], list[int]]:
    """(source indices of all latents, a lazy slice of each shard's latents, where each shard ends)."""
    readable, shards = [], []
    for path in paths:
        file = safe_open(path, "pt")
        readable.append(file.get_tensor("readable"))
        shards.append(file.get_slice("latents"))
    return torch.cat(readable), shards, list(accumulate(map(len, readable)))
