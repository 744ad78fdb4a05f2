"""A resampler whose learned queries are seeded with the ids of a second tokenizer, as gguf-trainer's for PixArt."""

from __future__ import annotations

from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ..conditioning import HiddenStates
from ..config import AdapterConfig
from .adapter import Adapter
from .attention import Attention, attended

EPS = 1e-5


class SeededResamplerAdapter(Adapter):
    """``tokens`` learned queries, each with the embedding of the id at its place added; ``depth`` blocks at
    ``inner_width``, in which they attend to each other, then to the real states, then pass an MLP; LayerNorm; Linear.
    -> [B Q C], a token for each id; behind these, queries seeded with id 0 are attended like the others and not given.

    tokens: the most ids that it asks with. vocabulary: rows of the embedding.
    """

    own_tokens = True
    asks = "ids"
    options = MappingProxyType({"tokens": 120, "vocabulary": None, "depth": 6, "heads": None})

    def __init__(self, config: AdapterConfig):
        super().__init__(config)
        assert config.tokens is not None and config.vocabulary is not None
        assert config.depth is not None and config.heads is not None
        width = config.inner_width
        self.queries = nn.Parameter(0.02 * torch.randn(config.tokens, width))
        self.embed = nn.Embedding(config.vocabulary, width)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.in_proj = nn.Linear(config.in_width, width)
        self.blocks = nn.ModuleList(SeededBlock(width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.out_proj = nn.Linear(width, config.out_width)

    def attend(self, hidden: HiddenStates, timestep: Tensor | None) -> Tensor:
        assert hidden.queries is not None
        places, count = len(self.queries), hidden.queries.shape[1]
        if count > places:
            raise ValueError(
                f"the adapter 'seeded_resampler' asks with {places} tokens of its second tokenizer at most, the prompt "
                f"has {count}: shorten it"
            )
        x = self.queries + self.embed(pad(hidden.queries.clamp(min=0), (0, places - count)))
        states, mask = self.in_proj(hidden.states), attended(hidden.mask)
        everyone = mask.new_ones(x.shape[:2])
        for block in self.blocks:
            x = block(x, states, everyone, mask)
        return self.out_proj(self.norm(x[:, :count]))


class SeededBlock(nn.Module):
    """Pre-norm with LayerNorm; an MLP of four times the width with exact GELU."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        norms = (nn.LayerNorm(width, eps=EPS) for _ in range(4))
        self.norm_self, self.norm_queries, self.norm_states, self.norm_mlp = norms
        self.self_attn, self.cross_attn = Attention(width, heads), Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: Tensor, states: Tensor, everyone: Tensor, mask: Tensor) -> Tensor:
        """x [B N W], everyone [B N] over it; states [B T W], mask [B T] over them. -> [B N W]"""
        asking = self.norm_self(x)
        x = x + self.dropout(self.self_attn(asking, asking, everyone))
        x = x + self.dropout(self.cross_attn(self.norm_queries(x), self.norm_states(states), mask))
        return x + self.dropout(self.mlp(self.norm_mlp(x)))
