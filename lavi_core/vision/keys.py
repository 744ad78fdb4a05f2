"""How LoRA tensors of a vision model are named in a file, so that stock ComfyUI's LoRA loader reads them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..lora import Delta, LoRA


@dataclass(frozen=True, kw_only=True)
class Fused:
    """Matrices that the host keeps as one, their rows in the order of ``parts``.

    path: regex of a part's whole module path, with a group "part". into: what stands in its place, as in ``re.sub``.
    """

    path: str
    into: str
    parts: tuple[str, ...]


@dataclass(frozen=True)
class KeyFormat:
    """stem(path) + down / up / alpha are the tensor names of one delta. alpha: None = no such tensor, alpha / rank is
    multiplied into up, which every loader reads alike. renames: (regex, replacement), applied to the module path one
    after the other. fused: deltas of its parts are written as one, block-diagonal in rank."""

    prefix: str
    separator: str  # stands for the dots of a module path
    down: str
    up: str
    alpha: str | None = ".alpha"
    renames: tuple[tuple[str, str], ...] = ()
    fused: Fused | None = None

    def stem(self, path: str) -> str:
        """Of a part of a fused matrix, that of the whole."""
        if self.fused is not None:
            path = re.sub(rf"^{self.fused.path}$", self.fused.into, path)
        for pattern, replacement in self.renames:
            path = re.sub(pattern, replacement, path)
        return self.prefix + path.replace(".", self.separator)

    def part(self, path: str) -> int | None:
        """Which part of a fused matrix this module is; None = it is none."""
        found = re.fullmatch(self.fused.path, path) if self.fused is not None else None
        return None if found is None or self.fused is None else self.fused.parts.index(found["part"])


def lora_tensors(lora: LoRA, keys: KeyFormat) -> dict[str, Tensor]:
    """The tensors of a LoRA by their names in a file; alpha is a float32 scalar, down and up are as they are.

    Raises ValueError where a fused matrix lacks one of its parts.
    """
    tensors: dict[str, Tensor] = {}
    for stem, delta in joined(lora, keys).items():
        tensors[stem + keys.down] = delta.down
        if keys.alpha is None:
            tensors[stem + keys.up] = delta.up * delta.scale if delta.scale != 1 else delta.up
        else:
            tensors[stem + keys.up] = delta.up
            tensors[stem + keys.alpha] = torch.tensor(delta.scale * delta.down.shape[0], dtype=torch.float32)
    return tensors


def read_lora(
    tensors: Mapping[str, Tensor], paths: Sequence[str], keys: KeyFormat, rows: Mapping[str, int]
) -> dict[str, Delta]:
    """The inverse. rows: path -> output rows of the parts of fused matrices, whose ranks are alike.

    Raises KeyError with the name of a tensor or path that is missing.
    """
    lora = {}
    for path in paths:
        stem, part = keys.stem(path), keys.part(path)
        down, up = tensors[stem + keys.down], tensors[stem + keys.up]
        scale = 1.0 if keys.alpha is None else tensors[stem + keys.alpha].item() / down.shape[0]
        lora[path] = Delta(down, up, scale) if part is None else _part(Delta(down, up, scale), path, keys, rows)
    return lora


def apart(found: LoRA, lora: LoRA, keys: KeyFormat) -> dict[str, Delta]:
    """Deltas by stem -> by the paths of ``lora``, which has the same sites; a stem may be missing. A part of a fused
    matrix whose delta is not block-diagonal keeps the whole rank."""
    rows, parts = fused_rows(lora, keys), {}
    for path in lora:
        if (delta := found.get(keys.stem(path))) is not None:
            parts[path] = delta if path not in rows else _part(delta, path, keys, rows)
    return parts


def _part(whole: Delta, path: str, keys: KeyFormat, rows: Mapping[str, int]) -> Delta:
    assert keys.fused is not None
    part, count = keys.part(path) or 0, len(keys.fused.parts)
    fused = sorted((other for other in rows if keys.stem(other) == keys.stem(path)), key=lambda p: keys.part(p) or 0)
    up = whole.up.split([rows[other] for other in fused])[part]
    blocks = up.chunk(count, dim=1)
    if len(blocks) != count or any(block.any() for other, block in enumerate(blocks) if other != part):
        return whole._replace(up=up.clone())
    return Delta(whole.down.chunk(count)[part].clone(), blocks[part].clone(), whole.scale)


def fused_rows(lora: LoRA, keys: KeyFormat) -> dict[str, int]:
    """What ``read_lora`` is to be told."""
    return {path: delta.up.shape[0] for path, delta in lora.items() if keys.part(path) is not None}


def joined(lora: LoRA, keys: KeyFormat) -> dict[str, Delta]:
    """Deltas by stem, those of the parts of a fused matrix as one: down one below the other, up block-diagonal.

    Raises ValueError where a fused matrix lacks one of its parts, or their ranks differ.
    """
    found: dict[str, Delta] = {}
    parts: dict[str, dict[int, Delta]] = {}
    for path, delta in lora.items():
        part = keys.part(path)
        if part is None:
            found[keys.stem(path)] = delta
        else:
            parts.setdefault(keys.stem(path), {})[part] = delta
    for stem, group in parts.items():
        assert keys.fused is not None
        if len(group) != len(keys.fused.parts) or len({len(delta.down) for delta in group.values()}) != 1:
            raise ValueError(
                f"the LoRA has {len(group)} of the {len(keys.fused.parts)} matrices that ComfyUI keeps as one in "
                f"{stem}, or of different ranks: it must adapt all of them with one rank"
            )
        ordered = [group[part] for part in sorted(group)]
        up = torch.block_diag(*(delta.up * delta.scale if delta.scale != 1 else delta.up for delta in ordered))
        found[stem] = Delta(torch.cat([delta.down for delta in ordered]), up, 1.0)
    return found


KOHYA = KeyFormat("lora_unet_", "_", ".lora_down.weight", ".lora_up.weight")
"""kohya's names; ComfyUI maps them for every U-Net (not for a diffusers DiT)."""

TRANSFORMER = KeyFormat("transformer.", ".", ".lora_A.weight", ".lora_B.weight")
"""diffusers' names of a DiT; ComfyUI maps q, k and v into its own fused matrices."""

DIFFUSERS = KeyFormat("transformer.", ".", ".lora_A.weight", ".lora_B.weight", alpha=None)
"""The same without alpha, which diffusers' loaders of the newer models refuse and ComfyUI reads from nowhere else."""


def host_keys(*renames: tuple[str, str], fused: Fused | None = None) -> KeyFormat:
    """ComfyUI's own module paths, for models whose diffusers names it does not know."""
    return KeyFormat(
        "diffusion_model.", ".", ".lora_A.weight", ".lora_B.weight", alpha=None, renames=renames, fused=fused
    )
