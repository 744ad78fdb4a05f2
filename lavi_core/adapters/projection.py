"""Two linear maps with a ReLU between, token by token: what stands behind DistillT5's encoder (arXiv 2503.19897)."""

from __future__ import annotations

from torch import Tensor, nn

from ..config import AdapterConfig
from .adapter import Adapter

DROPOUT = 0.1


class ProjectionAdapter(Adapter):
    """Linear -> ReLU -> Dropout -> Linear, both without a bias: [B T D] -> [B T C] by way of ``inner_width``; named as
    in the published file."""

    def __init__(self, config: AdapterConfig):
        super().__init__(config)
        self.net = nn.Sequential(
            nn.Linear(config.in_width, config.inner_width, bias=False),
            nn.ReLU(),
            nn.Dropout(DROPOUT),
            nn.Linear(config.inner_width, config.out_width, bias=False),
        )

    def context(self, states: Tensor) -> Tensor:
        return self.net(states)
