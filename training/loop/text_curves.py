"""The panels of curves.png that tell whether the picture hears the text: what captions are worth, and the context.

Of one run the lines have colours; of several a run has a colour, and what is measured a kind of line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .plotting import COLORS, STYLES, Panel, Run, colored, legend

Reading = Callable[[Mapping[str, Any]], float | None]


def _lines(axes: Any, runs: Sequence[Run], key: str, readings: Mapping[str, Reading]) -> None:
    """A line for each of the readings of what the log has under ``key``; one that is nowhere has none."""
    single = len(runs) == 1
    for number, (label, read) in enumerate(readings.items()):
        style, known = STYLES[number % len(STYLES)], False
        for color, run in colored(runs):
            steps, found = run.series(key)
            values = [read(entry) for entry in found]
            if any(value is not None for value in values):
                known = True
                look = {"color": COLORS[number % len(COLORS)] if single else color, "linestyle": style}
                axes.plot(steps, np.array(values, dtype=float), marker="o", markersize=3, linewidth=1.3, **look)
        if known:
            axes.plot([], [], label=label, linestyle=style, color=COLORS[number % len(COLORS)] if single else "#666666")


def _captions(axes: Any, runs: Sequence[Run]) -> None:
    """How much the loss rises with other captions than the right ones; zero = the picture does not hear the text."""

    def worse(kind: str) -> Reading:
        return lambda losses: losses[kind] - losses["right"] if kind in losses else None

    axes.axhline(0, color="#999999", linewidth=0.9)
    _lines(axes, runs, "caption_loss", {"shuffled captions": worse("shuffled"), "empty captions": worse("empty")})
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4), useOffset=False)
    axes.yaxis.get_offset_text().set(fontsize=8, color="#666666")
    legend(axes)


def _reading(of: str, name: str) -> Reading:
    return lambda measures: measures.get(of, {}).get(name)


def _size(axes: Any, runs: Sequence[Run]) -> None:
    readings = {"bridge": ("bridge", "size"), "own encoder": ("own", "size"), 'bridge, ""': ("bridge", "empty_size")}
    _lines(axes, runs, "context", {label: _reading(*where) for label, where in readings.items()})
    axes.set_ylim(0, 1.3 * axes.get_ylim()[1])  # room for the legend
    legend(axes, loc="upper left", ncols=2)


def _spread(axes: Any, runs: Sequence[Run]) -> None:
    readings = {
        "between captions": ("bridge", "spread"),
        "between captions, own encoder": ("own", "spread"),
        'from "" to captions': ("bridge", "empty_distance"),
        'from "" to captions, own': ("own", "empty_distance"),
    }
    _lines(axes, runs, "context", {label: _reading(*where) for label, where in readings.items()})
    axes.set_ylim(0, 1.3 * axes.get_ylim()[1])  # room for the legend
    legend(axes, loc="upper left", ncols=2)


PANELS = (
    Panel("validation loss over that of the right captions", "caption_loss", _captions),
    Panel("size of the context (root mean square)", "context", _size),
    Panel("spread of the context, in units of its size", "context", _spread),
)
