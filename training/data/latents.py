"""Latents of a source, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from ...lavi_core import fingerprint
from ..files import write_safetensors, write_text
from ..vision_model import encode
from .sources import Source, UnreadableImage

log = logging.getLogger(__name__)

SHARD = 2048
BATCH = 32
MAX_UNREADABLE = 0.05


class LatentCache:
    """Raw latents of the readable pictures of a source, float16, in shards of a folder named by what they depend on:
    source, VAE and shard. ``readable[k]`` is the source index of the k-th latent.
    """

    def __init__(
        self, source: Source, vae, folder: str | Path, report: str | Path | None = None, precision: str = "fp32"
    ):
        """Encodes what is not on disk yet, in bf16 where ``precision`` says so. Unreadable pictures are logged, counted
        and listed in ``report``; more than 5 % of them raise ValueError.
        """
        from tqdm import tqdm

        self.source, self.precision = source, precision
        vae_print = fingerprint.weights_print(vae) + precision
        count = len(source)
        shards, bad = [], []
        starts = range(0, count, SHARD)
        for start in tqdm(starts, desc="latents", disable=len(starts) < 2, mininterval=2):
            stop = min(start + SHARD, count)
            key = hashlib.sha256(f"{source.fingerprint}{vae_print}{start}-{stop}".encode()).hexdigest()[:24]
            path = Path(folder) / f"latents-{key}.safetensors"
            if not path.is_file():
                write_safetensors(path, self._encode(source, vae, range(start, stop), bad, count))
            shards.append(path)
        if bad:
            if report is not None:
                write_text(report, "".join(f"{line}\n" for line in bad))
            log.warning("%d of %d images are unreadable and left out, the first: %s", len(bad), count, bad[0])
        self.latents, self.readable = _open(shards)
        if len(self.readable) < count * (1 - MAX_UNREADABLE):
            raise _too_many(count - len(self.readable), count, bad)

    def _encode(self, source: Source, vae, indices: range, bad: list[str], count: int) -> dict[str, Tensor]:
        latents, readable = [], []
        for begin in range(indices.start, indices.stop, BATCH):
            images = []
            for index in range(begin, min(begin + BATCH, indices.stop)):
                try:
                    images.append(source.image(index))
                    readable.append(index)
                except UnreadableImage as error:
                    bad.append(str(error))
                    log.warning("unreadable image %s", error)
                    if len(bad) > count * MAX_UNREADABLE:
                        raise _too_many(len(bad), count, bad) from None
            if images:
                pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
                device = next(vae.parameters()).device
                with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                    latents.append(encode(vae, pixels.to(device)).half().cpu())
        return {"latents": torch.cat(latents), "readable": torch.tensor(readable)}

    def __len__(self) -> int:
        return len(self.readable)

    def batch(self, indices: Sequence[int], epochs: Sequence[int]) -> tuple[Tensor, list[str]]:
        """(raw latents [B C h w] float32, captions)."""
        captions = [self.source.caption(int(self.readable[i]), e) for i, e in zip(indices, epochs, strict=True)]
        return self.latents[list(indices)].float(), captions


def _too_many(unreadable: int, count: int, bad: list[str]) -> ValueError:
    example = f" ({bad[0]})" if bad else ""
    return ValueError(
        f"{unreadable} of {count} images are unreadable, more than {MAX_UNREADABLE:.0%}{example}; mend the data set or "
        "its paths"
    )


def _open(paths: list[Path]) -> tuple[Tensor, Tensor]:
    latents, readable = [], []
    for path in paths:
        with safe_open(path, "pt") as file:
            latents.append(file.get_tensor("latents"))
            readable.append(file.get_tensor("readable"))
    return torch.cat(latents), torch.cat(readable)
