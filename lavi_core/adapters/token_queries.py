"""Queries that are the embedded token ids of a second tokenizer, as Anima asks with T5's (ComfyUI's ``LLMAdapter``)."""

from __future__ import annotations

from types import MappingProxyType

import torch.nn.functional as F
from torch import Tensor, nn

from ..conditioning import HiddenStates
from ..config import AdapterConfig
from .adapter import Adapter
from .attention import attended, turned

EPS = 1e-6


class TokenQueriesAdapter(Adapter):
    """Embedding of the query ids at ``out_width``; ``depth`` blocks at ``inner_width``, in which the queries attend to
    each other, then to the states, then pass an MLP; Linear; RMSNorm. -> [B Q C], a token for each query.

    vocabulary: rows of the embedding, at least as many as the second tokenizer has ids.
    """

    own_tokens = True
    asks = "ids"
    options = MappingProxyType({"vocabulary": None, "depth": 6, "heads": None})

    def __init__(self, config: AdapterConfig):
        super().__init__(config)
        assert config.vocabulary is not None and config.depth is not None and config.heads is not None
        width, out = config.inner_width, config.out_width
        self.embed = nn.Embedding(config.vocabulary, out)
        self.in_proj = nn.Identity() if width == out else nn.Linear(out, width)
        self.blocks = nn.ModuleList(QueryBlock(width, config.in_width, config.heads) for _ in range(config.depth))
        self.out_proj = nn.Linear(width, out)
        self.norm = nn.RMSNorm(out, eps=EPS)

    def attend(self, hidden: HiddenStates, timestep: Tensor | None) -> Tensor:
        assert hidden.queries is not None
        x = self.in_proj(self.embed(hidden.queries.clamp(min=0)))
        asking, mask = attended(hidden.queries >= 0), attended(hidden.mask)
        for block in self.blocks:
            x = block(x, hidden.states, asking, mask)
        return self.norm(self.out_proj(x))


class QueryBlock(nn.Module):
    """Pre-norm with RMSNorm; an MLP of four times the width with exact GELU."""

    def __init__(self, width: int, in_width: int, heads: int):
        super().__init__()
        self.norm_self_attn, self.norm_cross_attn, self.norm_mlp = (nn.RMSNorm(width, eps=EPS) for _ in range(3))
        self.self_attn = QueryAttention(width, width, heads)
        self.cross_attn = QueryAttention(width, in_width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: Tensor, states: Tensor, asking: Tensor, mask: Tensor) -> Tensor:
        """x [B Q W], asking [B Q] over it; states [B T D], mask [B T] over them. -> [B Q W]"""
        normed = self.norm_self_attn(x)
        x = x + self.dropout(self.self_attn(normed, normed, asking))
        x = x + self.dropout(self.cross_attn(self.norm_cross_attn(x), states, mask))
        return x + self.dropout(self.mlp(self.norm_mlp(x)))


class QueryAttention(nn.Module):
    """Attention without biases; queries and keys are normalised head by head, then turned by their place (arXiv
    2104.09864), each counted from 0."""

    def __init__(self, width: int, heard_width: int, heads: int):
        super().__init__()
        if width % heads or width // heads % 2:
            raise ValueError(
                f"adapter.heads = {heads} does not divide the adapter's inner width {width} into heads of an even "
                "width, of which rotary positions turn pairs: set another, or another adapter.inner_width"
            )
        self.heads = heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(heard_width, width, bias=False)
        self.v_proj = nn.Linear(heard_width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.q_norm, self.k_norm = (nn.RMSNorm(width // heads, eps=EPS) for _ in range(2))

    def forward(self, x: Tensor, heard: Tensor, mask: Tensor) -> Tensor:
        """x [B Q W] asks ``heard`` [B T D], of which it attends to where mask [B T] is True. -> [B Q W]"""
        parts = (self.q_proj(x), self.k_proj(heard), self.v_proj(heard))
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        query, key = turned(self.q_norm(query)), turned(self.k_norm(key))
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None])
        return self.o_proj(found.transpose(1, 2).flatten(2))
