"""The exponential moving average (EMA) of the trained weights: saved in the bridge, not used in the forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..recipe import Recipe
from . import optimizers

PREFIX, COUNT = "average:", "average_step"  # in a state


class EMA:
    """diffusers' exponential moving average, whose decay grows to ``recipe.ema`` as (1 + step) / (10 + step), or the
    one that a schedule-free optimizer keeps; or none.
    """

    def __init__(self, recipe: Recipe, trained: Mapping[str, nn.Parameter]):
        self.trained = trained
        self.of_optimizer = recipe.optimizer.kind in optimizers.OWN_SCHEDULE
        self.ema = None
        if recipe.ema:
            from diffusers.training_utils import EMAModel

            self.ema = EMAModel(trained.values(), decay=recipe.ema, foreach=True)

    def begin(self) -> None:
        """The average is of the weights from now on: a head start is behind them, not a part of it."""
        if self.ema is not None:
            self.ema.shadow_params = [p.clone().detach() for p in self.trained.values()]

    def to(self, device: torch.device) -> None:
        if self.ema is not None:
            self.ema.to(device)

    def step(self) -> None:
        if self.ema is not None:
            self.ema.step(self.trained.values())

    @contextmanager
    def swapped_in(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """The averages in the place of the weights, which are put back to the bit."""
        kept = [p.detach().clone() for p in self.trained.values()] if self.ema or self.of_optimizer else []
        optimizers.use_averaged_weights(optimizer, True)
        if self.ema is not None:
            self.ema.copy_to(self.trained.values())
        try:
            yield
        finally:
            optimizers.use_averaged_weights(optimizer, False)
            with torch.no_grad():  # an optimizer that swaps them by arithmetic does not reach the bit
                for p, before in zip(self.trained.values(), kept, strict=bool(kept)):
                    p.copy_(before)

    def dump(self) -> dict[str, Tensor]:
        if self.ema is None:
            return {}
        averages = {PREFIX + key: p for key, p in zip(self.trained, self.ema.shadow_params, strict=True)}
        return {**averages, COUNT: torch.tensor(self.ema.optimization_step)}

    def restore(self, extra: Mapping[str, Tensor]) -> None:
        if self.ema is not None:
            self.ema.optimization_step = int(extra[COUNT])
            self.ema.shadow_params = [extra[PREFIX + key] for key in self.trained]
