"""What the panels of curves.png share: runs read from logs, colours, legends, axes, the moving average."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

COLORS = ("#2f6db3", "#d1672e", "#3f8f5b", "#8a5ba8", "#b8860b", "#3a9aa8", "#b0406a", "#6b7280")
STYLES = ("-", "--", ":", "-.")
INK, FAINT = "#333333", "#e6e6e6"
SHARE = 40  # the moving average reaches over one part of the run in this many, to each side


@dataclass(frozen=True)
class Run:
    """entries: the lines of a log, each with its "step" and what was measured there."""

    name: str
    entries: Sequence[Mapping[str, Any]]

    def series(self, key: str) -> tuple[np.ndarray, list[Any]]:
        """(steps, values) of the entries that have ``key``."""
        found = [(entry["step"], entry[key]) for entry in self.entries if key in entry]
        return np.array([step for step, _ in found]), [value for _, value in found]


class Panel(NamedTuple):
    title: str
    key: str  # shown where an entry has it
    draw: Callable[[Any, Sequence[Run]], None]


def legend(axes: Any, **more: Any) -> None:
    """more: of matplotlib."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8, labelcolor=INK, **more)


def colored(runs: Sequence[Run]) -> Iterator[tuple[str, Run]]:
    return ((COLORS[i % len(COLORS)], run) for i, run in enumerate(runs))


def logarithmic(axes: Any, ticks: Sequence[float]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=ticks, numticks=7))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()


def smooth(values: np.ndarray) -> np.ndarray:
    """Moving average over a ``SHARE``-th of the run to each side, centred, what is farther away counting less; at the
    ends over what is there. What is not finite counts for nothing."""
    width = 2 * max(1, len(values) // SHARE) - 1
    kernel, good = np.bartlett(width + 2)[1:-1], np.isfinite(values)
    sums = np.convolve(np.where(good, values, 0.0), kernel, "full")
    counts = np.convolve(good.astype(float), kernel, "full")
    middle = slice(width // 2, width // 2 + len(values))
    with np.errstate(invalid="ignore"):
        return sums[middle] / counts[middle]
