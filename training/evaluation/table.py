"""``lavi-bridge evaluate table``: runs beside what the paper reports, as Markdown."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...lavi_core.files import write_text
from .paper_figures import PAPER, ROWS, Reported
from .run_folder import Run
from .score import cell, read_scores

Scores = Mapping[str, Any]
NONE = "-"
OF_THE_PAPER = {(metric, category) for _, metrics, category in ROWS for metric in metrics}
SUBSTITUTES = ("spatial", "3-in-1")  # measured with a detector that is not the paper's


def table(args: argparse.Namespace) -> str:
    """The paper's rows, then all else that was measured, then how; written to ``args.output`` where it is given."""
    folders = [Path(folder) for folder in args.folders]
    short = [folder.resolve().name for folder in folders]
    names = short if len(set(short)) == len(short) else [str(folder) for folder in folders]
    text = of_runs(dict(zip(names, folders, strict=True)), args.paper)
    if args.output:
        write_text(args.output, f"{text}\n")
    return text


def of_runs(folders: Mapping[str, Path], paper: str) -> str:
    """folders: of runs, by the name of their column. paper: which of its tables, left out where the runs have none of
    its rows."""
    runs: dict[str, Scores] = {name: read_scores(Run.open(folder)) for name, folder in folders.items()}
    theirs = any(_category(scores, *row) for scores in runs.values() for row in OF_THE_PAPER)
    return "\n\n".join([*([beside(runs, PAPER[paper])] if theirs else []), *_others(runs), _how(runs)])


def beside(runs: Mapping[str, Scores], paper: Reported) -> str:
    """The rows of the paper: our runs, then the reported columns."""
    head = ["", *runs, *(f"{name} (reported)" for name in paper.columns)]
    lines = []
    for i, (label, metrics, category) in enumerate(ROWS):
        reported = [column[i] for column in paper.columns.values()]
        for metric in metrics:
            entries = {name: _category(scores, metric, category) for name, scores in runs.items()}
            full = next((e["name"] for e in entries.values() if e), metric)
            ours = [NONE if entry is None else cell(entry) for entry in entries.values()]
            if metric in SUBSTITUTES and any(entries.values()):
                lines.append([f"{label}: {full}", *ours, *([NONE] * len(reported))])
                ours = [NONE] * len(runs)
            lines.append([label if len(metrics) == 1 else f"{label} ({metric})", *ours, *reported])
    note = (
        "Reported figures are the paper's own: another training set, other prompts, and settings that it does not say "
        "(which aesthetic head, which FID reference, whether prompts had the quality suffix); spatial and complex are "
        "UniDet's there. They are no target of the runs beside them."
    )
    return f"### The paper's table of {paper.title}\n\n{markdown(head, lines)}\n\n{note}"


def _others(runs: Mapping[str, Scores]) -> Iterator[str]:
    """A table for each metric with what the paper has no row for."""
    for metric in dict.fromkeys(name for scores in runs.values() for name in scores["metrics"]):
        entries = {name: _measured(scores, metric) for name, scores in runs.items()}
        known = [entry for entry in entries.values() if entry is not None]
        categories = dict.fromkeys(c for entry in known for c in entry["categories"] if (metric, c) not in OF_THE_PAPER)
        if not known:
            continue
        bounds = [key for key in ("ceiling", "chance") if any(key in entry["settings"] for entry in known)]
        lines = []
        for category in [*categories, ""]:
            rows = [None if e is None else e["categories"].get(category) if category else e for e in entries.values()]
            limits = [_limit(known, key, category) for key in bounds]
            numbers = [NONE if limit is None else f"{limit:.4f}" for limit in limits]
            lines.append([category or "all", *(NONE if row is None else cell(row) for row in rows), *numbers])
        name = known[0]["name"]
        yield f"### {name}\n\n{markdown(['prompts', *entries, *bounds], lines)}"


def _limit(entries: Sequence[Mapping[str, Any]], key: str, category: str) -> float | None:
    """ceiling or chance of a category, of the first run that has it."""
    known = (entry["settings"].get(key, {}).get(category) for entry in entries)
    return next((value for value in known if value is not None), None)


def _how(runs: Mapping[str, Scores]) -> str:
    """N, settings and what was not measured, of each run."""
    note = (
        "95 % bootstrap intervals over prompts; none of a FID and of a single prompt. Where all of few pictures agree, "
        "the interval has no width and says nothing of other prompts."
    )
    lines = ["### How", "", note]
    for name, scores in runs.items():
        made = scores["settings"]
        lines += [
            "",
            f"**{name}**: {scores['pictures']} pictures of {scores['prompts']} prompts, "
            f"seeds {_seeds(scores['seeds'])}; {made['sampler']} {made['steps']} steps, "
            f"guidance {made['guidance']}, {made['size']} px, "
            f"{scores['prompts_cut']} prompts longer than the bridge hears and cut, "
            f"{made['precision']}, suffix {made['suffix']!r}, negative {made['negative']!r}; bridge "
            f"{scores['bridge'][:12]}, language model {made['language']}, vision model {made['vision']}, VAE "
            f"{made['vae']}.",
            "",
        ]
        for entry in scores["metrics"].values():
            if "value" in entry:
                told = {k: v for k, v in entry["settings"].items() if k not in ("ceiling", "chance")}
                facts = "; ".join(f"{key} {value}" for key, value in told.items())
                each = ", ".join(f"{name or 'none'} {row['n']}" for name, row in entry["categories"].items())
                lines.append(f"- {entry['name']}, N = {entry['n']}{f' ({each})' if each else ''}: {facts}")
        for metric, entry in scores["metrics"].items():
            if "unavailable" in entry:
                lines.append(f"- {metric}: unavailable: {entry['unavailable']}")
    return "\n".join(lines)


def _measured(scores: Scores, metric: str) -> Mapping[str, Any] | None:
    entry = scores["metrics"].get(metric)
    return entry if entry and "value" in entry else None


def _category(scores: Scores, metric: str, category: str) -> Mapping[str, Any] | None:
    entry = _measured(scores, metric)
    found = entry and entry["categories"].get(category)
    return {**found, "name": entry["name"]} if entry and found else None


def _seeds(seeds: Sequence[int]) -> str:
    whole = seeds == list(range(seeds[0], seeds[-1] + 1)) and len(seeds) > 2
    return f"{seeds[0]}..{seeds[-1]}" if whole else ", ".join(map(str, seeds))


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
