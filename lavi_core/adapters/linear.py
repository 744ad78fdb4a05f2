"""One linear map: the paper's "without adapter" ablation, where the widths differ."""

from __future__ import annotations

from torch import Tensor, nn

from ..config import AdapterConfig
from .adapter import Adapter


class LinearAdapter(Adapter):
    """[B T D] -> [B T C] by one nn.Linear; ``inner_width`` is not used."""

    def __init__(self, config: AdapterConfig):
        super().__init__(config)
        self.linear = nn.Linear(config.in_width, config.out_width)

    def context(self, states: Tensor) -> Tensor:
        return self.linear(states)

    def last_map(self) -> tuple[nn.Linear, None]:
        return self.linear, None
