"""Tensors in safetensors files: name, shape and format are known first, the bytes are read when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..quantized.formats import FORMATS, PLAIN, BlockFormat
from .scaled import factors, is_beside

# safetensors' names of the dtypes that weights have here
_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file. shape: of its values. read: its blocks, [... bytes] uint8, copied out of the file. read_rows:
    those of some rows alone; None = there is no way to."""

    shape: tuple[int, ...]
    format: BlockFormat
    read: Callable[[], Tensor]
    read_rows: Callable[[slice], Tensor] | None = None

    @property
    def nbytes(self) -> int:
        return self.format.nbytes(*self.shape) if self.shape else 0

    @property
    def is_scaled(self) -> bool:
        return self.format not in FORMATS.values()

    def __getitem__(self, rows: slice) -> Tensor:
        """The values of some rows, float32."""
        if self.read_rows is not None:
            return self.format.dense(self.read_rows(rows))
        return self.format.dense(self.read()).reshape(self.shape)[rows]


@contextmanager
def safetensors(files: Sequence[Path]) -> Iterator[dict[str, StoredTensor]]:
    """The tensors of safetensors files that are numbers with a fraction, by name; the files are open meanwhile.

    Factors of scaled weights are no tensors of their own here. A table of words that only a decoder's name is kept for
    (a file holds a shared one once, under whichever name) has the shared name too. Raises ValueError, see ``factors``.
    """
    from safetensors import safe_open

    with ExitStack() as opened:
        found: dict[str, StoredTensor] = {}
        for path in files:
            file = opened.enter_context(safe_open(str(path), "pt"))
            names = list(file.keys())
            scales = factors(path, names, file.get_tensor, file.metadata() or {})
            for name in names:
                part = file.get_slice(name)
                dtype, shape = _DTYPES.get(part.get_dtype()), tuple(part.get_shape())
                if dtype is not None and shape and not is_beside(name):
                    row = _scaled(PLAIN[dtype], scales.get(name, 1.0))
                    found[name] = StoredTensor(shape, row, partial(_blocks, file, name), partial(_rows, part))
        yield found | _shared(found)


def _scaled(row: BlockFormat, factor: float) -> BlockFormat:
    """The same blocks, whose values are multiplied when they are dequantised."""
    if factor == 1.0:
        return row
    return BlockFormat(f"{row.name} times a factor", row.values, row.bytes, partial(_times, row.decode, factor))


def _times(decode: Callable[[Tensor], Tensor], factor: float, blocks: Tensor) -> Tensor:
    return decode(blocks) * factor


def _shared(found: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    only, places = "decoder.embed_tokens.weight", ("shared.weight", "encoder.embed_tokens.weight")
    starts = [name.removesuffix(only) for name in found if f".{name}".endswith(f".{only}")]
    return {
        f"{start}shared.weight": found[f"{start}{only}"]
        for start in starts
        if not any(f"{start}{place}" in found for place in places)
    }


def _blocks(file: Any, name: str) -> Tensor:
    return file.get_tensor(name).contiguous().clone().view(torch.uint8)  # a copy: the file may be replaced later


def _rows(part: Any, rows: slice) -> Tensor:
    return part[rows].contiguous().view(torch.uint8)
