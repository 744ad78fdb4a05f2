"""The picture of a probe: what is heard, by depth, of every language model."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..loop.plotting import COLORS, FAINT, INK
from .measure import LATE, Probed
from .report import Column
from .states import BEFORE, LAST, MEAN

PIXELS, DPI = 1320, 120
GREY = "#666666"
AT_MEAN = 1.28  # on the axis of depths, from 0 to 1


def draw(probed: Sequence[Probed], shown: Sequence[Column], about: str) -> bytes:
    """A PNG: a panel a figure, a line a model over its layers, the mean of all beside them, intervals shaded."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PIXELS / DPI, 4.3), dpi=DPI, facecolor="white", layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, column in zip(panels, shown, strict=True):
        _clean(axes, column.title)
        _depths(axes)
        for number, model in enumerate(probed):
            _line(axes, model, column, COLORS[number % len(COLORS)])
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -0.25) if column.keys[0][2] == LATE else low, high)
    panels[0].set_ylabel(about, fontsize=8, color=GREY)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.suptitle("What a linear map hears, by layer", x=0.01, ha="left", fontsize=12, color=INK, fontweight="bold")
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(4, len(labels)),
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )
    return _png(figure)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _line(axes: Any, model: Probed, column: Column, color: str) -> None:
    along = [which for which in model.shares if which not in (MEAN, BEFORE)]
    depths = [1.0 if which == LAST else which / model.layers for which in along]  # type: ignore[operator]
    values, low, high = _values(model, along, column)
    axes.fill_between(depths, low, high, color=color, alpha=0.15, linewidth=0)
    axes.plot(depths, values, "o-", color=color, markersize=3, linewidth=1.6, label=model.name)
    for which, depth, marker in ((BEFORE, 1.0, "D"), (MEAN, AT_MEAN, "s")):
        if which in model.shares:
            value, low, high = _values(model, [which], column)
            axes.errorbar([depth], value, [value - low, high - value], fmt=marker, color=color, markersize=5, capsize=2)


def _values(model: Probed, states: Sequence[Any], column: Column) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    shares = [model.shares[which] for which in states]
    low, high = np.array(list(map(column.interval, shares))).T
    return np.array(list(map(column.value, shares))), low, high


def _clean(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#bbbbbb")
    axes.tick_params(colors=GREY, labelsize=8, length=3)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)


def _depths(axes: Any) -> None:
    axes.axhline(0, color="#999999", linewidth=0.9)
    axes.axvline((1 + AT_MEAN) / 2, color=FAINT, linewidth=0.8)
    axes.set_xlim(-0.04, AT_MEAN + 0.06)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1, AT_MEAN], ["words", "¼", "½", "¾", "last", "mean"])


class Point(NamedTuple):
    name: str
    probed: float
    judged: float
    low: float
    high: float


def scatter(panels: Sequence[tuple[str, Sequence[Point]]], across: str, up: str) -> bytes:
    """A PNG: what a probe says against what was judged, a point a row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PIXELS / DPI, 4.3), dpi=DPI, facecolor="white", layout="constrained")
    for axes, (title, points) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _clean(axes, title)
        for number, point in enumerate(points):
            spread = [[point.judged - point.low], [point.high - point.judged]]
            look = {"color": COLORS[number % len(COLORS)], "markersize": 6, "capsize": 2, "label": point.name}
            axes.errorbar([point.probed], [point.judged], spread, fmt="o", **look)
        axes.set_xlabel(across, fontsize=8, color=GREY)
    first, (handles, labels) = figure.axes[0], figure.axes[0].get_legend_handles_labels()
    first.set_ylabel(up, fontsize=8, color=GREY)
    look = {"frameon": False, "fontsize": 9, "labelcolor": INK}
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), **look)
    return _png(figure)
