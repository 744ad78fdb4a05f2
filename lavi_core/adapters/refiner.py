"""A bidirectional transformer over the states, for models that read one way (LI-DiT, arXiv 2406.11831)."""

from __future__ import annotations

from types import MappingProxyType

from torch import Tensor, nn

from ..conditioning import HiddenStates
from ..config import AdapterConfig
from .adapter import Adapter
from .attention import Attention, attended


class RefinerAdapter(Adapter):
    """LayerNorm -> Linear to ``inner_width`` -> ``depth`` transformer blocks, in which every token attends to the real
    ones -> Linear, where the widths differ -> LayerNorm. A token stays a token: [B T D] -> [B T C].

    Positions are those that the language model has put into its states. outer_norms: the first and the last LayerNorm.
    """

    options = MappingProxyType({"depth": 2, "heads": None, "outer_norms": True})

    def __init__(self, config: AdapterConfig):
        super().__init__(config)
        assert config.depth is not None and config.heads is not None
        width, normed = config.inner_width, config.outer_norms
        self.norm_in = nn.LayerNorm(config.in_width) if normed else nn.Identity()
        self.proj_in = nn.Linear(config.in_width, width)
        self.blocks = nn.ModuleList(TransformerBlock(width, config.heads) for _ in range(config.depth))
        self.proj_out = nn.Identity() if width == config.out_width else nn.Linear(width, config.out_width)
        self.norm_out = nn.LayerNorm(config.out_width) if normed else nn.Identity()

    def attend(self, hidden: HiddenStates, timestep: Tensor | None) -> Tensor:
        states, mask = self.proj_in(self.norm_in(hidden.states)), attended(hidden.mask)
        for block in self.blocks:
            states = block(states, mask)
        return self.norm_out(self.proj_out(states))

    def last_map(self) -> tuple[nn.Linear, nn.LayerNorm | None]:
        last = self.proj_out if isinstance(self.proj_out, nn.Linear) else self.blocks[-1].get_submodule("mlp.2")
        assert isinstance(last, nn.Linear)
        return last, self.norm_out if isinstance(self.norm_out, nn.LayerNorm) else None


class TransformerBlock(nn.Module):
    """Pre-norm attention and an MLP of four times the width with exact GELU; named as RouWei's blocks are."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.dropout(self.attn(normed, normed, mask))
        return x + self.dropout(self.mlp(self.norm2(x)))
