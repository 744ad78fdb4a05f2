"""What a metric is: what it may use, and what it returns for a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..metric_weights import Inapplicable, Weights
from ..run_folder import Picture


@dataclass(frozen=True, kw_only=True)
class MetricInputs:
    """What a metric may use. reference: statistics of true pictures, for FID."""

    weights: Weights
    device: torch.device
    batch_size: int = 16
    reference: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """values: picture id -> value, their mean is the score. totals: category -> value of all its pictures together, ""
    for the whole run, of a metric that has no value of one picture. suffix: goes to the metric's name, as the
    detector's does. details: picture id -> what else was seen. settings: all that another measurement must share.
    """

    settings: Mapping[str, Any]
    values: Mapping[int, float] = field(default_factory=dict)
    totals: Mapping[str, float] = field(default_factory=dict)
    suffix: str = ""
    details: Mapping[int, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """measure: raises Unavailable where something is missing. categories: of the pictures it is meant for; () = all."""

    measure: Callable[[Sequence[Picture], MetricInputs], Measurement]
    source: str
    categories: tuple[str, ...] = ()

    def of(self, pictures: Sequence[Picture]) -> list[Picture]:
        """The pictures it is meant for. Raises Inapplicable where there is none."""
        found = [p for p in pictures if not self.categories or p.category in self.categories]
        if not found:
            raise Inapplicable(f"no prompt of the run is of T2I-CompBench's {' or '.join(self.categories)}")
        return found
