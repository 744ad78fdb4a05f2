"""One file of the latent cache: latents by size, names, captions and the reasons of what could not be read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from ...lavi_core.files import reading, write_safetensors
from .resize_and_crop import Size


class ShardWriter:
    """Gathers what ``LatentShard`` reads back, place by place in the order of the source."""

    def __init__(self) -> None:
        self.parts: dict[Size, list[tuple[list[int], Tensor, Tensor | None]]] = {}
        self.names: list[str] = []
        self.captions: list[str] = []
        self.unreadable: dict[int, str] = {}

    def add(self, places: list[int], latents: Tensor, flipped: Tensor | None) -> None:
        """latents, and those of the mirrored pictures: [N C h w]."""
        self.parts.setdefault(Size(*latents.shape[-2:]), []).append((places, latents.half(), flipped))

    def write(self, path: Path) -> None:
        tensors: dict[str, Tensor] = {}
        for size, parts in self.parts.items():
            shape = f"{size.height}x{size.width}"
            tensors[f"places.{shape}"] = torch.tensor([place for places, _, _ in parts for place in places])
            tensors[f"latents.{shape}"] = torch.cat([latents for _, latents, _ in parts])
            mirrored = [flipped.half() for _, _, flipped in parts if flipped is not None]
            if mirrored:
                tensors[f"flipped.{shape}"] = torch.cat(mirrored)
        tensors |= {**_texts("names", self.names), **_texts("captions", self.captions)}
        facts = {"unreadable": json.dumps(self.unreadable), "count": str(len(self.names))}
        write_safetensors(path, tensors, facts)


class LatentShard:
    """The pictures that could be read, numbered from 0 in the order of the source; their latents stay on disk.

    places: [N] int64, where each stands among all that were to be read. sizes: of the latents; kinds: [N] int64, which
    of them each has. unreadable: the reasons, by place.
    """

    def __init__(self, path: Path):
        self.path = path
        with reading(path):
            self._file: Any = safe_open(path, "pt")
            facts: Mapping[str, str] = self._file.metadata()
            keys = set(self._file.keys())
            self.count = int(facts["count"])
            self.unreadable: dict[int, str] = {int(k): v for k, v in json.loads(facts["unreadable"]).items()}
            shapes = sorted(key.removeprefix("latents.") for key in keys if key.startswith("latents."))
            self.sizes = [Size(*map(int, shape.split("x"))) for shape in shapes]
            places = [self._file.get_tensor(f"places.{shape}") for shape in shapes]
            self._slices = {
                flip: [self._file.get_slice(f"{kind}.{shape}") for shape in shapes if f"{kind}.{shape}" in keys]
                for flip, kind in ((False, "latents"), (True, "flipped"))
            }
            self._texts = {name: self._file.get_slice(name) for name in ("names", "captions") if name in keys}
            self._ends = {name: self._file.get_tensor(f"{name}.ends").tolist() for name in self._texts}
        flat = torch.cat([*places, torch.zeros(0, dtype=torch.int64)])
        kinds = torch.repeat_interleave(torch.tensor([len(p) for p in places], dtype=torch.int64))
        rows = torch.cat([*(torch.arange(len(p)) for p in places), torch.zeros(0, dtype=torch.int64)])
        order = flat.argsort()
        self.places, self.kinds, self._rows = flat[order], kinds[order], rows[order]

    def __len__(self) -> int:
        return len(self.places)

    def latents(self, index: int, flipped: bool = False) -> Tensor:  # [1 C h w] float16
        row = int(self._rows[index])
        return self._slices[flipped][int(self.kinds[index])][row : row + 1]

    def name(self, index: int) -> str:
        return self._text("names", index)

    def names(self) -> list[str]:
        """All of them, in one go."""
        ends = self._ends["names"]
        flat = bytes(self._texts["names"][:].numpy())
        return [flat[ends[p - 1] if p else 0 : ends[p]].decode() for p in self.places.tolist()]

    def caption(self, index: int) -> str:
        return self._text("captions", index)

    def _text(self, which: str, index: int) -> str:
        place = int(self.places[index])
        ends = self._ends.get(which, [0] * self.count)  # none where all are empty
        start, end = ends[place - 1] if place else 0, ends[place]
        if start == end:
            return ""
        return bytes(self._texts[which][start:end].numpy()).decode()


def _texts(name: str, texts: Sequence[str]) -> dict[str, Tensor]:
    """Texts end to end, so that one of a million can be read without the rest."""
    coded = [text.encode() for text in texts]
    if not sum(map(len, coded)):
        return {}
    flat = torch.from_numpy(np.frombuffer(b"".join(coded), dtype=np.uint8).copy())
    return {name: flat, f"{name}.ends": torch.tensor(list(accumulate(map(len, coded))))}
