"""The cache of text states: a frozen language model's hidden states, computed once a caption and kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from ...lavi_core.conditioning import HiddenStates
from ...lavi_core.files import reading, write_safetensors, write_text
from ...lavi_core.prompt import PromptRecipe

log = logging.getLogger(__name__)

FORMAT = 2  # 2: keys and facts tell a language model that was changed
FILE_BYTES = 2**28  # of states that are gathered before a file is written


class _Row(NamedTuple):
    """One caption's."""

    states: Tensor  # [T D]
    mask: Tensor  # [T] bool


class TextStateCache:
    """Hidden states by caption. Where the vision model does not attend to padding, none is kept: a batch is then as
    long as its longest caption, with zeros behind (or before) a shorter one. Else every position is kept.

    States come back to the bit as ``compute`` gave them, in its dtype. It is given the captions of a call that are new,
    together: in which company a caption was computed shows in its last bits. A run that calls ``flush`` whenever it
    saves its state finds, when it is resumed, what it had computed, and goes on to the bit.
    """

    def __init__(
        self,
        folder: str | Path,
        facts: Mapping[str, object],
        prompt: PromptRecipe,
        compute: Callable[[Sequence[str]], HiddenStates],
        most_gb: float = float("inf"),
        key_of: Callable[[Sequence[str]], Sequence[bytes]] | None = None,
    ):
        """facts: what the states depend on besides ``prompt``: the language model's print, dtype, precision; they name
        a folder within ``folder``. key_of: 16 bytes that tell each caption from others, such as of its tokens; None =
        of its text. most_gb: disk space from which on new states are computed, but not kept.

        Raises ValueError for a prompt recipe by which a caption's states are not its own, see
        ``PromptRecipe.varies_with_batch``.
        """
        if prompt.varies_with_batch:
            raise ValueError("text states cannot be kept: by this prompt recipe they depend on the batch")
        facts = json.loads(json.dumps({**facts, "prompt": asdict(prompt), "format": FORMAT}, sort_keys=True))
        self.prompt, self.compute, self.most_bytes = prompt, compute, most_gb * 1e9
        self.key_of = key_of or (lambda captions: [_key(caption) for caption in captions])
        name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]
        self.folder = Path(folder) / f"states-{name}"
        if not (self.folder / "facts.json").is_file():
            write_text(self.folder / "facts.json", json.dumps(facts, indent=1))
        self._places: dict[bytes, tuple[int, int]] = {}  # caption -> file, row
        self._files: list[_StateFile] = []
        self._names: set[str] = set()
        self._pending: dict[bytes, _Row] = {}
        self._lock = threading.RLock()
        self._full = False
        self._open_new()

    def __len__(self) -> int:
        return len(self._places) + len(self._pending)

    def get(self, captions: Sequence[str]) -> HiddenStates:
        """states [B T D] and mask [B T] of the captions, on the CPU."""
        with self._lock, torch.no_grad():
            keys = list(self.key_of(captions))
            fresh = self._compute_new(keys, captions)
            rows = [fresh[key] if key in fresh else self._find(key) for key in keys]
            if not self.prompt.vision_mask and len({len(row.mask) for row in rows}) > 1:
                # A template of another length was cut here: what fills a row up is the batch's.
                hidden = self.compute(captions)
                return HiddenStates(hidden.states.cpu(), hidden.mask.cpu())
            return _stack(rows, self.prompt.padding_side == "left")

    def fill(self, captions: Sequence[str]) -> None:
        """Compute those of the captions that are new, together, without giving any."""
        with self._lock, torch.no_grad():
            self._compute_new(list(self.key_of(captions)), captions)

    @property
    def full(self) -> bool:
        """Whether states were computed that found no room, and have to be computed again."""
        return self._full

    def flush(self) -> None:
        """Write what is new, in one file, and take in what other processes have written."""
        with self._lock:
            if self._pending:
                path = self.folder / f"{len(self._files):06d}-{uuid.uuid4().hex[:12]}.safetensors"
                rows = self._pending.values()
                tensors = {
                    "keys": torch.tensor([list(key) for key in self._pending], dtype=torch.uint8),
                    "ends": torch.tensor(list(accumulate(len(row.mask) for row in rows))),
                    "states": torch.cat([row.states for row in rows]),
                    "mask": torch.cat([row.mask for row in rows]),
                }
                size = {"bytes": str(tensors["states"].nbytes)}
                try:
                    write_safetensors(path, tensors, size)
                except OSError as error:
                    raise ValueError(
                        f"the hidden states cannot be written to {path} ({error}); make room there, or do without them"
                    ) from error
                self._pending = {}
            self._open_new()

    def _compute_new(self, keys: Sequence[bytes], captions: Sequence[str]) -> dict[bytes, _Row]:
        new = {key: text for key, text in zip(keys, captions, strict=True) if not self._has(key)}
        if not new:
            return {}
        hidden = self.compute(list(new.values()))
        if not bool(torch.isfinite(hidden.states).all()):
            raise ValueError(
                "the text states that the language model gives are not finite (inf or NaN), so none is kept: "
                "take a wider dtype"
            )
        fresh = {key: self._row(hidden, i) for i, key in enumerate(new)}
        self._keep(fresh)
        return fresh

    def _row(self, hidden: HiddenStates, index: int) -> _Row:
        states, mask = hidden.states[index].cpu(), hidden.mask[index].cpu()
        if self.prompt.vision_mask:
            states, mask = states[mask], mask[mask]
        return _Row(states.clone(), mask.clone())

    def _keep(self, rows: Mapping[bytes, _Row]) -> None:
        size = sum(row.states.nbytes for row in rows.values())
        pending = sum(row.states.nbytes for row in self._pending.values())
        if sum(file.size for file in self._files) + pending + size > self.most_bytes:
            if not self._full:
                log.warning("%s has reached %.1f GB: further states are not kept", self.folder, self.most_bytes / 1e9)
            self._full = True
            return
        self._pending |= rows
        if pending + size >= FILE_BYTES:
            self.flush()

    def _has(self, key: bytes) -> bool:
        return key in self._pending or key in self._places

    def _find(self, key: bytes) -> _Row:
        if key in self._pending:
            return self._pending[key]
        file, row = self._places[key]
        return self._files[file].row(row)

    def _open_new(self) -> None:
        for path in sorted(self.folder.glob("[0-9]*.safetensors")):
            if path.name not in self._names:
                self._names.add(path.name)
                self._files.append(_StateFile(path))
                for row, key in enumerate(self._files[-1].keys):
                    self._places.setdefault(key, (len(self._files) - 1, row))


class _StateFile:
    def __init__(self, path: Path):
        with reading(path):
            file: Any = safe_open(path, "pt")
            self.size = int(file.metadata()["bytes"])  # of the states alone, as those that wait are counted
            self.keys = [bytes(row) for row in file.get_tensor("keys").numpy()]
            self.ends = file.get_tensor("ends").tolist()
            self.mask = file.get_tensor("mask")
            self.states = file.get_slice("states")

    def row(self, row: int) -> _Row:
        part = slice(self.ends[row - 1] if row else 0, self.ends[row])
        return _Row(self.states[part], self.mask[part])


def _stack(rows: Sequence[_Row], left: bool) -> HiddenStates:
    length = max(len(row.mask) for row in rows)
    states = rows[0].states.new_zeros(len(rows), length, rows[0].states.shape[-1])
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        place = slice(length - len(row.mask), length) if left else slice(0, len(row.mask))
        states[i, place], mask[i, place] = row.states, row.mask
    return HiddenStates(states, mask)


def _key(caption: str) -> bytes:
    return hashlib.sha256(caption.encode("utf-8", "surrogatepass")).digest()[:16]
