"""GGUF blocks of 32 values with one scale, dequantised: [N bytes] uint8 -> [N 32] float32 (ggml-quants.h).

Operations stand in the order of the gguf package's numpy, so that results are equal to the bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def halves(blocks: Tensor) -> Tensor:
    """[N 2k] bytes of little-endian float16 -> [N k] float32"""
    return blocks.contiguous().view(torch.float16).float()


def bits(packed: Tensor, shifts: tuple[int, ...], mask: int) -> Tensor:
    """[N ... L] -> [N ... S L]: each byte shifted by each of the shifts, and masked."""
    by = torch.tensor(shifts, dtype=torch.uint8, device=packed.device)
    return (packed.unsqueeze(-2) >> by.unsqueeze(-1)) & mask


def nibbles(packed: Tensor) -> Tensor:
    """[N 16] -> [N 32] values 0 ... 15: the low halves of the bytes, then the high ones."""
    return bits(packed, (0, 4), 15).flatten(1)


def fifth_bits(packed: Tensor) -> Tensor:
    """[N 4] -> [N 32] values 0 or 16"""
    by = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return (((packed.unsqueeze(-1) >> by) & 1) << 4).flatten(1)


def q4_0(blocks: Tensor) -> Tensor:
    return halves(blocks[:, :2]) * (nibbles(blocks[:, 2:]).float() - 8)


def q4_1(blocks: Tensor) -> Tensor:
    scale, least = halves(blocks[:, :4]).split(1, dim=1)
    return scale * nibbles(blocks[:, 4:]).float() + least


def q5_0(blocks: Tensor) -> Tensor:
    values = nibbles(blocks[:, 6:]) | fifth_bits(blocks[:, 2:6])
    return halves(blocks[:, :2]) * (values.float() - 16)


def q5_1(blocks: Tensor) -> Tensor:
    scale, least = halves(blocks[:, :4]).split(1, dim=1)
    values = nibbles(blocks[:, 8:]) | fifth_bits(blocks[:, 4:8])
    return scale * values.float() + least


def q8_0(blocks: Tensor) -> Tensor:
    return blocks[:, 2:].contiguous().view(torch.int8).float() * halves(blocks[:, :2])


def iq4_nl(blocks: Tensor) -> Tensor:
    return halves(blocks[:, :2]) * iq4_values(nibbles(blocks[:, 2:]))


def iq4_values(indices: Tensor) -> Tensor:
    return torch.tensor(IQ4_VALUES, dtype=torch.float32, device=indices.device)[indices.int()]
