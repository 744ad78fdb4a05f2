"""The table of block formats: how many bytes hold how many values of a weight, and what the values are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..registry import Registry
from . import k_blocks, small_blocks

PIECE = 2**22  # values decoded in one go: what is made in between stays some 100 MB


@dataclass(frozen=True)
class BlockFormat:
    """One row of the table. Blocks run along the input dimension, so a row of a matrix is a row of whole blocks.

    decode: blocks [N bytes] uint8 -> [N values] float32.
    """

    name: str
    values: int
    bytes: int
    decode: Callable[[Tensor], Tensor]

    def row_bytes(self, columns: int) -> int:
        """Raises ValueError where ``columns`` values are no whole number of blocks."""
        if columns % self.values:
            raise ValueError(f"rows of {columns} values are no whole blocks of {self.values}, which {self.name} needs")
        return columns // self.values * self.bytes

    def nbytes(self, *shape: int) -> int:
        """Bytes that a tensor of this shape takes."""
        *rows, columns = shape
        return torch.Size(rows).numel() * self.row_bytes(columns)

    def dense(self, blocks: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Rows of blocks [... bytes] uint8 -> rows of values [... columns] in ``dtype``, where the blocks lie."""
        *rows, width = blocks.shape
        columns = width // self.bytes * self.values
        flat = blocks.reshape(-1, width)
        out = torch.empty(len(flat), columns, dtype=dtype, device=blocks.device)
        step = max(1, PIECE // max(1, columns))
        for first in range(0, len(flat), step):
            piece = flat[first : first + step]
            out[first : first + step] = self.decode(piece.reshape(-1, self.bytes)).view(len(piece), columns)
        return out.view(*rows, columns)


def _plain(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return partial(_viewed, dtype=dtype)


def _viewed(blocks: Tensor, dtype: torch.dtype) -> Tensor:
    return blocks.contiguous().view(dtype).float()


_ROWS = (
    BlockFormat("F32", 1, 4, _plain(torch.float32)),
    BlockFormat("F16", 1, 2, _plain(torch.float16)),
    BlockFormat("BF16", 1, 2, _plain(torch.bfloat16)),
    BlockFormat("F8_E4M3", 1, 1, _plain(torch.float8_e4m3fn)),
    BlockFormat("F8_E5M2", 1, 1, _plain(torch.float8_e5m2)),
    BlockFormat("Q4_0", 32, 18, small_blocks.q4_0),
    BlockFormat("Q4_1", 32, 20, small_blocks.q4_1),
    BlockFormat("Q5_0", 32, 22, small_blocks.q5_0),
    BlockFormat("Q5_1", 32, 24, small_blocks.q5_1),
    BlockFormat("Q8_0", 32, 34, small_blocks.q8_0),
    BlockFormat("IQ4_NL", 32, 18, small_blocks.iq4_nl),
    BlockFormat("IQ4_XS", 256, 136, k_blocks.iq4_xs),
    BlockFormat("Q2_K", 256, 84, k_blocks.q2_k),
    BlockFormat("Q3_K", 256, 110, k_blocks.q3_k),
    BlockFormat("Q4_K", 256, 144, k_blocks.q4_k),
    BlockFormat("Q5_K", 256, 176, k_blocks.q5_k),
    BlockFormat("Q6_K", 256, 210, k_blocks.q6_k),
)

FORMATS = Registry("block format", {row.name: row for row in _ROWS})
PLAIN = {  # the formats that a tensor of PyTorch has by itself
    torch.float32: FORMATS["F32"],
    torch.float16: FORMATS["F16"],
    torch.bfloat16: FORMATS["BF16"],
    torch.float8_e4m3fn: FORMATS["F8_E4M3"],
    torch.float8_e5m2: FORMATS["F8_E5M2"],
}
