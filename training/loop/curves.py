"""The curves of runs as one picture, from their ``log.jsonl``."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...lavi_core.files import write_bytes
from . import text_curves
from .plotting import COLORS, FAINT, INK, STYLES, Panel, Run, colored, legend, logarithmic, mark, smooth

PIXELS, DPI = 1200, 120  # of the picture: its width
WIDE = 150  # letters beside each other in a panel of the whole width
LEFT, RIGHT, TOP, BOTTOM, BETWEEN = 0.6, 0.12, 0.6, 0.36, 0.66  # inches around the panels and between two rows


def draw_curves(log: Path, output: Path) -> None:
    """Draw the curves of one run's ``log.jsonl`` into a PNG. Raises ValueError for a log without a step."""
    draw([read_run(log, log.resolve().parent.name)], output)


def read_run(log: Path, name: str) -> Run:
    """A last line that is not whole, as a trainer leaves it in the middle of writing, is passed over.

    Raises ValueError for a log that is missing, holds another line that is no entry, or no step at all.
    """
    if not log.is_file():
        raise ValueError(f"there is no log of a run at {log}")
    try:
        lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
    except UnicodeDecodeError:
        raise ValueError(f"{log} is no log of a run: name a run's folder, or the log.jsonl in it") from None
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            entries.append(entry | {"step": int(entry["step"])})
        except (ValueError, TypeError, KeyError):
            if number < len(lines) or line.endswith("\n"):
                raise ValueError(f"{log} line {number} is no entry of a run's log: {line[:80]!r}") from None
    if not entries:
        raise ValueError(f"{log} holds no step yet")
    return Run(name, entries)


def draw(runs: Sequence[Run], output: Path) -> None:
    """Write the picture of ``picture`` as a PNG, whole or not at all."""
    buffer = io.BytesIO()
    picture(runs).savefig(buffer, format="png")
    write_bytes(output, buffer.getvalue())


def picture(runs: Sequence[Run]) -> Any:
    """A matplotlib figure of all runs: a panel for each thing that was measured in any of them."""
    from matplotlib.figure import Figure

    shown = [panel for panel in PANELS if any(panel.key in entry for run in runs for entry in run.entries)]
    alone = [i for i, panel in enumerate(shown) if i == 0 or panel.draw is _bench]  # in its row
    rows = len(alone) + -(-(len(shown) - len(alone)) // 2)
    width, height = PIXELS / DPI, 1.6 + 2.4 * rows
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    panel_height = (height - TOP - BOTTOM - BETWEEN * (rows - 1)) / rows  # the mean
    grid = figure.add_gridspec(  # room as numbers: a layout that looks for it takes longer than the drawing
        rows,
        2,
        left=LEFT / width,
        right=1 - RIGHT / width,
        bottom=BOTTOM / height,
        top=1 - TOP / height,
        wspace=0.13,
        hspace=BETWEEN / panel_height,
        height_ratios=[1.25] + [1] * (rows - 1),
    )
    place = 0  # in halves of rows
    for i, panel in enumerate(shown):
        wide = i in alone or (place % 2 == 0 and (i + 1 == len(shown) or i + 1 in alone))
        place += place % 2 if wide else 0
        axes = figure.add_subplot(grid[place // 2, slice(None) if wide else place % 2])
        place += 2 if wide else 1
        _plain(axes, panel.title)
        panel.draw(axes, runs)
    figure.suptitle(_heading(runs), x=0.01, y=1 - 0.1 / height, fontsize=12, color=INK, fontweight="bold", ha="left")
    return figure


def _heading(runs: Sequence[Run]) -> str:
    if len(runs) > 1:
        return f"{len(runs)} runs"
    return f"{runs[0].name}, step {max(entry['step'] for entry in runs[0].entries):,}"


def _plain(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#bbbbbb")
    axes.tick_params(colors="#666666", labelsize=8, length=3)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.01)
    axes.locator_params(nbins=6)


def _noisy(axes: Any, key: str, runs: Sequence[Run], alone: str | None = None) -> None:
    """Every step faint, their moving average over it; single spikes may leave the axis, the average does not."""
    low, high = [], []
    for color, run in colored(runs):
        steps, raw = run.series(key)
        if not len(steps):
            continue
        values = np.array(raw, dtype=float)
        average = smooth(values)
        axes.plot(steps, values, color=color, alpha=0.22, linewidth=0.7)
        axes.plot(steps, average, color=color, linewidth=1.6, label=run.name if len(runs) > 1 else alone, **mark(steps))
        finite = values[np.isfinite(values)]
        if len(finite):
            low.append(np.percentile(finite, 0.5))
            high.append(max(np.percentile(finite, 99.5), np.nanmax(average)))
    if low and max(high) > min(low):
        room = 0.06 * (max(high) - min(low))
        axes.set_ylim(min(low) - room, max(high) + room)


def _loss(axes: Any, runs: Sequence[Run]) -> None:
    _noisy(axes, "loss", runs, "training")
    for i, (_, run) in enumerate(colored(runs)):
        steps, found = run.series("validation")
        if len(steps):
            color = COLORS[1] if len(runs) == 1 else COLORS[i % len(COLORS)]
            label = "validation" if len(runs) == 1 else f"{run.name}, validation"
            losses = [value["loss"] for value in found]
            axes.plot(steps, losses, "o--", color=color, markersize=3.5, linewidth=1, label=label)
            low, high = axes.get_ylim()
            axes.set_ylim(min(low, 0.97 * min(losses)), max(high, 1.03 * max(losses)))
    axes.set_xlabel("step", fontsize=8, color="#666666")
    legend(axes, WIDE, loc="upper right", ncols=2)


def _looks(groups: Sequence[str], single: bool) -> list[dict[str, str]]:
    return [
        {"color": COLORS[i % len(COLORS)] if single else "#666666", "linestyle": STYLES[i % len(STYLES)]}
        for i in range(len(groups))
    ]


def _learning_rates(axes: Any, runs: Sequence[Run]) -> None:
    """By group; where there are several runs, a group is told by the kind of line."""
    groups = list(dict.fromkeys(name for run in runs for rates in run.series("learning_rate")[1] for name in rates))
    single, peaks = len(runs) == 1, []
    looks = _looks(groups, single)
    for color, run in colored(runs):
        steps, found = run.series("learning_rate")
        for name, look in zip(groups, looks, strict=True) if found else ():
            rates = np.array([rate.get(name, np.nan) for rate in found], dtype=float)
            peaks.append(np.nanmax(rates, initial=0.0))
            axes.plot(steps, rates, linewidth=1.4, **mark(steps), **(look if single else look | {"color": color}))
    for name, look in zip(groups, looks, strict=True):
        axes.plot([], [], label=name, **look)
    if peaks := [peak for peak in peaks if peak > 0]:
        logarithmic(axes, (1.0,))
        axes.set_ylim(min(peaks) / 50, 2 * max(peaks))
    legend(axes)


def _norm(axes: Any, runs: Sequence[Run]) -> None:
    _noisy(axes, "norm", runs)


def _group_norms(axes: Any, runs: Sequence[Run]) -> None:
    """The moving average of each group; where there are several runs, a group is told by the kind of line."""
    groups = list(dict.fromkeys(name for run in runs for norms in run.series("group_norm")[1] for name in norms))
    single, drawn = len(runs) == 1, []
    looks = _looks(groups, single)
    for color, run in colored(runs):
        steps, found = run.series("group_norm")
        for name, look in zip(groups, looks, strict=True) if found else ():
            norms = smooth(np.array([norm.get(name, np.nan) for norm in found], dtype=float))
            drawn.append(norms[norms > 0])
            axes.plot(steps, norms, linewidth=1.4, **mark(steps), **(look if single else look | {"color": color}))
    for name, look in zip(groups, looks, strict=True):
        axes.plot([], [], label=name, **look)
    values = np.concatenate(drawn) if drawn else np.array([])
    if len(values):
        logarithmic(axes, (1.0, 2.0, 5.0) if values.max() < 30 * values.min() else (1.0,))
        axes.set_ylim(0.8 * values.min(), values.max() * (values.max() / values.min()) ** 0.2 * 1.2)  # and the legend
    legend(axes, loc="upper left", ncols=len(groups))


def _speed(axes: Any, runs: Sequence[Run]) -> None:
    _noisy(axes, "images_per_second", runs)
    axes.set_ylim(bottom=0)


def _bins(axes: Any, runs: Sequence[Run]) -> None:
    """One run: each part of the noise levels over the steps. Several: the last of each run over the noise levels."""
    from matplotlib import colormaps

    if len(runs) > 1:
        for color, run in colored(runs):
            _, found = run.series("validation")
            if found:
                bins = found[-1]["bins"]
                middles = (np.arange(len(bins)) + 0.5) / len(bins)
                axes.plot(middles, bins, "o-", color=color, markersize=3, linewidth=1.4, label=run.name)
        axes.set_xlabel("noise level (0 = the picture, 1 = noise alone), last validation", fontsize=8, color="#666666")
        legend(axes)
        return
    steps, found = runs[0].series("validation")
    count = len(found[-1]["bins"])
    whole = [i for i, value in enumerate(found) if len(value["bins"]) == count]  # a resumed run may have other parts
    steps, rows = steps[whole], np.array([found[i]["bins"] for i in whole], dtype=float)  # [validations bins]
    shades = colormaps["viridis"](np.linspace(0.05, 0.9, count))
    for i in range(count):
        ends = {0: "least noise", count - 1: "most noise"}
        axes.plot(steps, rows[:, i], "o-", color=shades[i], markersize=2.5, linewidth=1.2, label=ends.get(i))
    logarithmic(axes, (1.0, 2.0, 5.0))
    legend(axes)


def _bench(axes: Any, runs: Sequence[Run]) -> None:
    """One run: the score of each category. Several: the mean of each run's categories."""
    for color, run in colored(runs):
        steps, found = run.series("bench")
        if not found:
            continue
        if len(runs) > 1:
            means = [float(np.mean(list(scores.values()))) for scores in found]
            axes.plot(steps, means, "o-", color=color, markersize=3.5, linewidth=1.4, label=run.name)
            continue
        names = list(dict.fromkeys(name for scores in found for name in scores))
        for i, name in enumerate(names):
            values = [scores.get(name, np.nan) for scores in found]
            axes.plot(steps, values, "o-", color=COLORS[i % len(COLORS)], markersize=3, linewidth=1.2, label=name)
    axes.set_yticks([0.0, 0.25, 0.5, 0.75, 1.0])
    axes.set_xlim(0, 1.01 * max(entry["step"] for run in runs for entry in run.entries))
    rows = legend(axes, WIDE, loc="upper left", ncols=9)
    axes.set_ylim(-0.03, 1.03 / (1 - 0.05 - 0.11 * rows))  # room for the legend


PANELS = (
    Panel("loss", "loss", _loss),
    Panel("learning rate", "learning_rate", _learning_rates),
    Panel("gradient norm before clipping", "norm", _norm),
    Panel("gradient norm by group", "group_norm", _group_norms),
    Panel("images per second", "images_per_second", _speed),
    Panel("validation loss by noise level", "validation", _bins),
    *text_curves.PANELS,
    Panel("ShapeBench, share of right pictures", "bench", _bench),
)
