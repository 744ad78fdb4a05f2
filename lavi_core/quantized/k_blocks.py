"""GGUF k-quants, dequantised: blocks of 256 values with scales for every 16 or 32; [N bytes] uint8 -> [N 256].

Operations stand in the order of the gguf package's numpy, so that results are equal to the bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .small_blocks import bits, halves, iq4_values


def q2_k(blocks: Tensor) -> Tensor:
    scales, packed, ends = blocks.split((16, 64, 4), dim=1)
    scale, least = halves(ends).split(1, dim=1)
    by = (scale * (scales & 15).float()).unsqueeze(-1)  # [N 16 1]
    off = (least * (scales >> 4).float()).unsqueeze(-1)
    values = bits(packed.reshape(-1, 2, 32), (0, 2, 4, 6), 3).reshape(-1, 16, 16).float()
    return (by * values - off).flatten(1)


def q3_k(blocks: Tensor) -> Tensor:
    high, packed, scales, scale = blocks.split((32, 64, 12, 2), dim=1)
    low_scales = bits(scales[:, :8], (0, 4), 15).flatten(1)
    high_scales = bits(scales[:, 8:], (0, 2, 4, 6), 3).flatten(1)
    by = (halves(scale) * ((low_scales | (high_scales << 4)).float() - 32)).unsqueeze(-1)  # [N 16 1]
    low = bits(packed.reshape(-1, 2, 32), (0, 2, 4, 6), 3).reshape(-1, 16, 16)
    top = bits(high, tuple(range(8)), 1).reshape(-1, 16, 16) ^ 1  # the offset is zero where the bit is one
    return (by * (low.float() - (top << 2).float())).flatten(1)


def q4_k(blocks: Tensor) -> Tensor:
    ends, scales, packed = blocks.split((4, 12, 128), dim=1)
    by, off = _scales_and_offsets(ends, scales)
    values = bits(packed.reshape(-1, 4, 32), (0, 4), 15).reshape(-1, 8, 32)
    return (by * values.float() - off).flatten(1)


def q5_k(blocks: Tensor) -> Tensor:
    ends, scales, high, packed = blocks.split((4, 12, 32, 128), dim=1)
    by, off = _scales_and_offsets(ends, scales)
    low = bits(packed.reshape(-1, 4, 32), (0, 4), 15).reshape(-1, 8, 32)
    values = low | (bits(high, tuple(range(8)), 1) << 4)
    return (by * values.float() - off).flatten(1)


def q6_k(blocks: Tensor) -> Tensor:
    low, high, scales, scale = blocks.split((128, 64, 16, 2), dim=1)
    by = (halves(scale) * scales.contiguous().view(torch.int8).float()).unsqueeze(-1)  # [N 16 1]
    values = bits(low.reshape(-1, 2, 64), (0, 4), 15).reshape(-1, 8, 32)
    values = values | (bits(high.reshape(-1, 2, 32), (0, 2, 4, 6), 3).reshape(-1, 8, 32) << 4)
    return (by * (values.reshape(-1, 16, 16).float() - 32)).flatten(1)


def iq4_xs(blocks: Tensor) -> Tensor:
    scale, high, low, packed = blocks.split((2, 2, 4, 128), dim=1)
    low_scales = torch.stack((low & 15, low >> 4), dim=-1).flatten(1)  # [N 8]
    by_two = torch.tensor((0, 2, 4, 6), dtype=torch.uint8, device=blocks.device)
    high_scales = ((high.unsqueeze(-1) >> by_two) & 3).flatten(1)
    by = (halves(scale) * ((low_scales | (high_scales << 4)).float() - 32)).unsqueeze(-1)  # [N 8 1]
    return (by * iq4_values(bits(packed.reshape(-1, 8, 16), (0, 4), 15).reshape(-1, 8, 32))).flatten(1)


def _scales_and_offsets(ends: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Six bits for each of eight scales and eight offsets, in twelve bytes. -> [N 8 1], [N 8 1]"""
    scale, least = halves(ends).split(1, dim=1)
    first, second, both = scales.split(4, dim=1)
    by = torch.cat((first & 0x3F, (both & 0x0F) | ((first >> 2) & 0x30)), dim=1)
    off = torch.cat((second & 0x3F, (both >> 4) | ((second >> 2) & 0x30)), dim=1)
    return (scale * by.float()).unsqueeze(-1), (least * off.float()).unsqueeze(-1)
