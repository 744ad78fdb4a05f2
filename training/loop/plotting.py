"""What the panels of curves.png share: runs read from logs, colours, legends, axes, the moving average."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, NamedTuple

import numpy as np

COLORS = ("#2f6db3", "#d1672e", "#3f8f5b", "#8a5ba8", "#b8860b", "#3a9aa8", "#b0406a", "#6b7280")
STYLES = ("-", "--", ":", "-.")
INK, FAINT = "#333333", "#e6e6e6"
LONGEST = 36  # letters of a name in a legend
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


def legend(axes: Any, letters: int = 76, **more: Any) -> int:
    """A legend of at most ``letters`` in a row, lines' marks counted in, with its number of rows; 0 = nothing is named.
    Names of more than ``LONGEST`` letters lose what all begin with, and their ends. more: of matplotlib."""
    handles, names = axes.get_legend_handles_labels()
    if not names:
        return 0
    if max(map(len, names)) > LONGEST:
        alike = sum(1 for _ in takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False)))
        begins = max(0, alike - 4) if len(names) > 1 else 0
        shown = [f"…{name[begins:]}" if begins else name for name in names]
        names = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in shown]
    columns = max(1, min(len(names), letters // (max(map(len, names)) + 8), more.pop("ncols", 1)))
    axes.legend(handles, names, frameon=False, fontsize=8, labelcolor=INK, ncols=columns, **more)
    return -(-len(names) // columns)


def mark(steps: Sequence[Any] | np.ndarray) -> dict[str, Any]:
    """How a line is drawn so that one of a single point is seen."""
    return {"marker": "o", "markersize": 3} if len(steps) == 1 else {}


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
