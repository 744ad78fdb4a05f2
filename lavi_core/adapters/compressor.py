"""A transformer over the states, learned queries that ask it, a transformer over what they heard: RouWei's adapter."""

from __future__ import annotations

from types import MappingProxyType

import torch
from torch import Tensor, nn

from ..conditioning import HiddenStates
from ..config import AdapterConfig
from .adapter import Adapter
from .attention import Attention, attended
from .refiner import TransformerBlock


class CompressorAdapter(Adapter):
    """The adapters that github.com/NeuroSenko/ComfyUI_LLM_SDXL_Adapter loads, to the number.

    Linear to ``inner_width``, where the widths differ; + learned positions; ``depth`` blocks over the real tokens;
    ``tokens`` learned queries that attend to them, and are mixed with what they heard by a gate; LayerNorm; + positions
    of their own; ``narrow_depth`` blocks; of a pooled vector one more query and an MLP.

    positions: of the states that are heard, from the first one on, padding included; more are refused. outer_norms:
    LayerNorm of what comes in.
    """

    own_tokens = True
    own_pooled = True
    options = MappingProxyType(
        {"tokens": 308, "depth": 2, "narrow_depth": 3, "heads": None, "outer_norms": False, "positions": 512}
    )

    def __init__(self, config: AdapterConfig):
        super().__init__(config)
        tokens, positions, heads, width = config.tokens, config.positions, config.heads, config.inner_width
        assert tokens is not None and positions is not None and heads is not None
        assert config.depth is not None and config.narrow_depth is not None
        self.norm_in = nn.LayerNorm(config.in_width) if config.outer_norms else nn.Identity()
        self.proj_in = nn.Identity() if width == config.in_width else nn.Linear(config.in_width, width)
        self.positions_in = nn.Parameter(0.02 * torch.randn(1, positions, width))
        self.wide = nn.ModuleList(TransformerBlock(width, heads) for _ in range(config.depth))
        self.queries = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.compression = Attention(width, heads)
        self.gate = nn.Linear(2 * width, width)
        self.norm = nn.LayerNorm(width)
        self.positions_out = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.narrow = nn.ModuleList(TransformerBlock(width, heads) for _ in range(config.narrow_depth))
        self.proj_out = nn.Identity() if width == config.out_width else nn.Linear(width, config.out_width)
        if config.pooled_width is not None:
            self.pooling_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
            self.pooling = Attention(width, heads)
            self.pool_proj = nn.Sequential(
                nn.Linear(width, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, config.pooled_width)
            )

    def gather(self, hidden: HiddenStates, timestep: Tensor | None) -> tuple[Tensor, Tensor | None]:
        count, length = len(hidden.states), hidden.states.shape[1]
        if length > self.positions_in.shape[1]:
            raise ValueError(
                f"the prompt gives {length} states, this bridge's adapter has positions for "
                f"{self.positions_in.shape[1]}: shorten the prompt, or lower prompt.max_length"
            )
        mask = attended(hidden.mask)
        states = self.proj_in(self.norm_in(hidden.states)) + self.positions_in[:, :length]
        for block in self.wide:
            states = block(states, mask)
        queries = self.queries.expand(count, -1, -1)
        heard = self.compression(queries, states, mask)
        share = torch.sigmoid(self.gate(torch.cat([queries, heard], dim=-1)))
        x = self.norm(share * heard + (1 - share) * queries) + self.positions_out
        whole = mask.new_ones(x.shape[:2])
        for block in self.narrow:
            x = block(x, whole)
        if self.config.pooled_width is None:
            return self.proj_out(x), None
        pooled = self.pooling(self.pooling_token.expand(count, -1, -1), x, whole)
        return self.proj_out(x), self.pool_proj(pooled[:, 0])

    def attend(self, hidden: HiddenStates, timestep: Tensor | None) -> Tensor:
        return self.gather(hidden, timestep)[0]

    def last_map(self) -> tuple[nn.Linear, None]:
        last = self.proj_out if isinstance(self.proj_out, nn.Linear) else self.narrow[-1].get_submodule("mlp.2")
        assert isinstance(last, nn.Linear)
        return last, None
