"""A perceiver with rotary positions, as github.com/cosmicoxytocin/qwen-sdxl-adapter trains it for SDXL."""

from __future__ import annotations

from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..conditioning import HiddenStates
from ..config import AdapterConfig
from .adapter import Adapter
from .attention import Attention, turned

EPS = 1e-6


class PerceiverAdapter(Adapter):
    """``tokens`` learned queries, and one more for the pooled vector where there is one; ``depth`` blocks, in which
    they attend to each other, then to the states, then pass a gated MLP; Linear. An ``inner_width`` that is not
    ``in_width`` puts a Linear before, which theirs has not.

    A prompt without a real token is heard as the plain mean of its padding, as theirs hears the empty prompt.
    """

    own_tokens = True
    own_pooled = True
    options = MappingProxyType({"tokens": 77, "depth": 6, "heads": None})

    def __init__(self, config: AdapterConfig):
        super().__init__(config)
        assert config.tokens is not None and config.depth is not None and config.heads is not None
        width, pooled = config.inner_width, config.pooled_width
        self.proj_in = nn.Identity() if width == config.in_width else nn.Linear(config.in_width, width)
        self.queries = nn.Parameter(0.02 * torch.randn(1, config.tokens + (pooled is not None), width))
        self.blocks = nn.ModuleList(PerceiverBlock(width, config.heads) for _ in range(config.depth))
        self.proj_out = nn.Linear(width, config.out_width)
        if pooled is not None:
            self.pool_proj = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, pooled))

    def gather(self, hidden: HiddenStates, timestep: Tensor | None) -> tuple[Tensor, Tensor | None]:
        states = self.proj_in(hidden.states)
        x = self.queries.expand(len(states), -1, -1)
        for block in self.blocks:
            x = block(x, states, hidden.mask)
        assert self.config.tokens is not None
        context, rest = x.split((self.config.tokens, x.shape[1] - self.config.tokens), dim=1)
        return self.proj_out(context), self.pool_proj(rest[:, 0]) if rest.shape[1] else None

    def attend(self, hidden: HiddenStates, timestep: Tensor | None) -> Tensor:
        return self.gather(hidden, timestep)[0]

    def last_map(self) -> tuple[nn.Linear, None]:
        return self.proj_out, None


class PerceiverBlock(nn.Module):
    """Pre-norm; the norm before the second attention is that of the queries and of the states."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.RMSNorm(width, eps=EPS) for _ in range(3))
        self.self_attn = Attention(width, heads)
        self.cross_attn = RotaryAttention(width, heads)
        self.mlp = SwiGLU(width)
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """x [B N W], states [B T W], mask [B T] over the latter. -> [B N W]"""
        normed = self.norm1(x)
        x = x + self.dropout(self.self_attn(normed, normed, mask.new_ones(x.shape[:2])))
        x = x + self.dropout(self.cross_attn(self.norm2(x), self.norm2(states), mask))
        return x + self.dropout(self.mlp(self.norm3(x)))


class RotaryAttention(nn.Module):
    """Attention without biases in which queries and states are turned by their place (arXiv 2104.09864), each counted
    from 0."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width // heads % 2:
            raise ValueError(
                f"adapter.heads = {heads} leaves {width // heads} channels a head, of which rotary positions turn "
                "pairs: set a number that leaves an even one, or another adapter.inner_width"
            )
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_kv = nn.Linear(width, 2 * width, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, heard: Tensor, mask: Tensor) -> Tensor:
        """x [B N W] asks ``heard`` [B T W], where mask [B T] is True; all of it alike where it is True nowhere."""
        parts = (self.to_q(x), *self.to_kv(heard).chunk(2, dim=-1))
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        # Not -inf, of which a whole row is no number; nor float32's lowest, which is -inf in the bf16 of autocast.
        lowest = torch.finfo(query.dtype).min
        bias = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, lowest)[:, None, None]
        found = F.scaled_dot_product_attention(turned(query), turned(key), value, attn_mask=bias)
        return self.to_out(found.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """Linear to four times the width, once through SiLU, as the gate of the other (arXiv 2002.05202) -> Linear."""

    def __init__(self, width: int):
        super().__init__()
        self.w1 = nn.Linear(width, 4 * width, bias=False)
        self.w2 = nn.Linear(width, 4 * width, bias=False)
        self.w3 = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(F.silu(self.w1(x)) * self.w2(x))
