"""Attention with a mask over the tokens that are heard, as the adapters that mix tokens have it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD_WIDTH = 64
THETA = 10000.0


def check_heads(width: int, heads: int) -> None:
    """Raise ValueError for heads that do not divide the width."""
    if width % heads:
        raise ValueError(
            f"adapter.heads = {heads} does not divide the adapter's inner width {width}: set another, or another "
            "adapter.inner_width"
        )


class Attention(nn.Module):
    """Weights are named and laid out as in torch's ``nn.MultiheadAttention``, and so as in ELLA's and RouWei's files:
    the rows of ``in_proj_weight`` are those of query, key and value."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, heard: Tensor, mask: Tensor) -> Tensor:
        """x [B N W] asks ``heard`` [B T W], of which it attends to where mask [B T] is True. -> [B N W]"""
        width = x.shape[-1]
        sizes = (width, 2 * width)
        (weight, weights), (bias, biases) = self.in_proj_weight.split(sizes), self.in_proj_bias.split(sizes)
        parts = (F.linear(x, weight, bias), *F.linear(heard, weights, biases).chunk(2, dim=-1))
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None])
        return self.out_proj(found.transpose(1, 2).flatten(2))


def attended(mask: Tensor) -> Tensor:
    """``mask`` [B T], all True in a row that has no real token: attention to nothing is no number."""
    return mask | ~mask.any(dim=1, keepdim=True)


def turned(x: Tensor) -> Tensor:
    """[B heads N D] -> the same, rows turned by their number (arXiv 2104.09864): channel i with channel i + D / 2."""
    count, width = x.shape[-2:]
    place = torch.arange(count, dtype=torch.float32, device=x.device).unsqueeze(1)
    speed = THETA ** -(torch.arange(0, width, 2, dtype=torch.float32, device=x.device) / width)
    angle = (place * speed).repeat(1, 2)
    first, second = x.chunk(2, dim=-1)
    return x * angle.cos().to(x.dtype) + torch.cat([-second, first], dim=-1) * angle.sin().to(x.dtype)
