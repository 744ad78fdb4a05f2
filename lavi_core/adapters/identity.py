"""No adapter at all: for a vision model's own text encoder, whose width already fits."""

from __future__ import annotations

from torch import Tensor

from ..config import AdapterConfig
from .adapter import Adapter


class IdentityAdapter(Adapter):
    """Hands the states on. Raises ValueError where the widths differ."""

    def __init__(self, config: AdapterConfig):
        super().__init__(config)
        if config.in_width != config.out_width:
            raise ValueError(
                f"the identity adapter needs equal widths, the language model gives {config.in_width} and the vision "
                f"model takes {config.out_width}; use kind = 'linear' or 'mlp'"
            )

    def context(self, states: Tensor) -> Tensor:
        return states
