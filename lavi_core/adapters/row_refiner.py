"""Rows of states through a ridge regression, then refined, as AnimaT5Free's conditioner."""

from __future__ import annotations

from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..conditioning import HiddenStates, asked
from ..config import AdapterConfig
from ..segmenter import Segmenter
from .adapter import Adapter
from .attention import attended, check_heads


class RowRefinerAdapter(Adapter):
    """A row is the mean of some neighbouring states. Standardised, it goes through a ridge regression whose constant is
    that of the row's place and of the prompt's length; ``depth`` transformer blocks at ``inner_width``, in which rows
    hear each other, add to that. -> [B R C], zeros for a row without states.

    ``hidden.queries`` is [B R 3]: the first state of a row, the one behind its last, the row of ``constants``.
    vocabulary: rows of ``constants``. What the regression and the cutting (``language/row_cutter.py``) are made of is
    not trained.
    """

    own_tokens = True
    asks = "rows"
    options = MappingProxyType({"vocabulary": None, "depth": 2, "heads": None})

    mean: Tensor
    spread: Tensor
    ridge: Tensor
    constants: Tensor

    def __init__(self, config: AdapterConfig):
        super().__init__(config)
        assert config.vocabulary is not None and config.depth is not None and config.heads is not None
        heard, width, out = config.in_width, config.inner_width, config.out_width
        self.register_buffer("mean", torch.zeros(heard))
        self.register_buffer("spread", torch.ones(heard))
        self.register_buffer("ridge", torch.zeros(heard, out))
        self.register_buffer("constants", torch.zeros(config.vocabulary, out))
        self.register_buffer("penalty", torch.zeros(()))  # of the regression, and how many rows it was solved for
        self.register_buffer("examples", torch.zeros((), dtype=torch.int64))
        self.segmenter = _kept(Segmenter())
        self.proj_in = nn.Linear(out + heard, width)
        self.blocks = nn.ModuleList(RowBlock(width, config.heads) for _ in range(config.depth))
        self.proj_out = nn.Linear(width, out)

    def attend(self, hidden: HiddenStates, timestep: Tensor | None) -> Tensor:
        assert hidden.queries is not None
        first, stop, constant = hidden.queries.clamp(min=0).unbind(-1)
        place = torch.arange(hidden.states.shape[1], device=first.device)
        heard = (place >= first.unsqueeze(-1)) & (place < stop.unsqueeze(-1))  # [B R T]
        share = heard.to(hidden.states) / heard.sum(-1, keepdim=True).clamp(min=1)
        rows = (share @ hidden.states - self.mean) / self.spread
        guess = self.constants[constant] + rows @ self.ridge
        rows = rows.half().to(guess.dtype)  # as the refiner was trained
        spoken = asked(hidden.queries) & (stop > first)
        x, mask = self.proj_in(torch.cat([guess, rows], dim=-1)), attended(spoken)
        for block in self.blocks:
            x = block(x, mask)
        return (guess + self.proj_out(x)) * spoken.unsqueeze(-1)


class RowBlock(nn.Module):
    """Pre-norm attention without biases and an MLP of four times the width with exact GELU. Of its heads' products it
    takes the root of the whole width, not of a head's."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        check_heads(width, heads)
        self.heads, self.scale = heads, width**-0.5
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [B R W], of which rows are heard where mask [B R] is True."""
        normed = self.norm1(x)
        parts = (self.to_q(normed), self.to_k(normed), self.to_v(normed))
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None], scale=self.scale)
        x = x + self.dropout(self.to_out(found.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.mlp(self.norm2(x)))


def _kept(module: nn.Module) -> nn.Module:
    """With buffers in the place of parameters: it is no part of what is trained."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach())
    return module
