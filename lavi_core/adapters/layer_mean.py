"""The learned mean of a language model's layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerMean(nn.Module):
    """Mean of L layers, each layer-normalised without weights, weighted by a softmax over L trained numbers (arXiv
    2512.15560, whose weights are frozen once they have been learnt). It begins as the plain mean (arXiv 2506.08210).

    frozen: the weights get no gradient, but stay in the graph, as DDP wants every trained parameter to.
    """

    def __init__(self, layers: int):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(layers))
        self.frozen = False

    def forward(self, states: Tensor) -> Tensor:
        """[B T L*D] -> [B T D]"""
        logits = self.logits.detach() + 0 * self.logits if self.frozen else self.logits
        layers = states.unflatten(-1, (len(logits), -1))
        return torch.einsum("l,btld->btd", logits.softmax(0), F.layer_norm(layers, layers.shape[-1:]))
