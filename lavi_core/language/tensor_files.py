"""Tensors in safetensors files: name, shape and format are known first, the bytes are read when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..quantized.formats import PLAIN, BlockFormat

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

    def __getitem__(self, rows: slice) -> Tensor:
        """The values of some rows, float32."""
        if self.read_rows is not None:
            return self.format.dense(self.read_rows(rows))
        return self.format.dense(self.read()).reshape(self.shape)[rows]


@contextmanager
def safetensors(files: Sequence[Path]) -> Iterator[dict[str, StoredTensor]]:
    """The tensors of safetensors files that are numbers with a fraction, by name; the files are open meanwhile."""
    from safetensors import safe_open

    with ExitStack() as opened:
        found: dict[str, StoredTensor] = {}
        for path in files:
            file = opened.enter_context(safe_open(str(path), "pt"))
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                part = file.get_slice(name)
                dtype, shape = _DTYPES.get(part.get_dtype()), tuple(part.get_shape())
                if dtype is not None and shape:
                    found[name] = StoredTensor(shape, PLAIN[dtype], partial(_blocks, file, name))
        yield found


def names(files: Sequence[Path]) -> list[str]:
    """Of all tensors of safetensors files, whatever they hold."""
    from safetensors import safe_open

    found: list[str] = []
    for path in files:
        with safe_open(str(path), "pt") as file:
            found += file.keys()
    return found


def _blocks(file: Any, name: str) -> Tensor:
    return file.get_tensor(name).contiguous().clone().view(torch.uint8)  # a copy: the file may be replaced later
