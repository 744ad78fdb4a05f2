"""The paper's adapter: a per-token MLP with gated GELU. No attention, no positions, no residual."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import AdapterConfig
from .adapter import Adapter

DROPOUT = 0.1


class GEGLU(nn.Module):
    """Linear to twice the width; the first half is the value, the second the gate (arXiv 2002.05202), exact GELU."""

    def __init__(self, in_width: int, out_width: int):
        super().__init__()
        self.proj = nn.Linear(in_width, 2 * out_width)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU to four times the width -> Dropout -> Linear; named as in the released files: ``net.0.proj``, ``net.2``."""

    def __init__(self, in_width: int, out_width: int):
        super().__init__()
        inner = 4 * in_width
        self.net = nn.Sequential(GEGLU(in_width, inner), nn.Dropout(DROPOUT), nn.Linear(inner, out_width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def pass_on(self) -> None:
        """Let the first ``in_width`` hidden units be the input times GELU(1): gates that are always as open."""
        proj = self.net[0].proj
        assert isinstance(proj, nn.Linear)
        count, inner = proj.in_features, proj.out_features // 2
        with torch.no_grad():
            for weights, row, bias in ((torch.eye(count), 0, 0.0), (torch.zeros(count, count), inner, 1.0)):
                proj.weight[row : row + count] = weights
                proj.bias[row : row + count] = bias


class MLPAdapter(Adapter):
    """LayerNorm(in) -> FF(in, inner) -> LayerNorm(inner) -> FF(inner, out); LaVi-Bridge's ``TextAdapter``."""

    def __init__(self, config: AdapterConfig):
        super().__init__(config)
        self.norm1 = nn.LayerNorm(config.in_width, eps=1e-5)
        self.ff1 = FeedForward(config.in_width, config.inner_width)
        self.norm2 = nn.LayerNorm(config.inner_width, eps=1e-5)
        self.ff2 = FeedForward(config.inner_width, config.out_width)

    def context(self, states: Tensor) -> Tensor:
        return self.ff2(self.norm2(self.ff1(self.norm1(states))))

    def last_map(self) -> tuple[nn.Linear, None]:
        last = self.ff2.net[2]
        assert isinstance(last, nn.Linear)
        return last, None

    def open_linear_path(self) -> nn.Linear:
        """Products of random maps, as GEGLU makes them, are nearly without a linear part."""
        middle = self.ff1.net[2]
        assert isinstance(middle, nn.Linear)
        for ff in (self.ff1, self.ff2):
            ff.pass_on()
        return middle
