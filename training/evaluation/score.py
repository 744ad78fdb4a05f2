"""``lavi-bridge evaluate score``: the metrics whose weights are here, of one run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...lavi_core.files import write_text
from ..loop.environment import environment
from ..models.device import pick_device
from .bootstrap import interval
from .metric_weights import Inapplicable, Unavailable, Weights
from .metrics import METRICS, Measurement, MetricInputs
from .run_folder import SCORES, SCORES_BY_PICTURE, Picture, Run


def score(args: argparse.Namespace) -> str:
    """Write scores.json and scores.jsonl of the run; return them in short. Metrics of an earlier call are kept.

    args.missing: leave out metrics that have a value. Raises ValueError, once all is written, where a metric is
    unavailable and ``args.require`` is set.
    """
    names = list(dict.fromkeys(args.metrics or METRICS))
    rows = {name: METRICS[name] for name in names}
    run = Run.open(args.folder)
    reference = Path(args.reference) if args.reference else None
    inputs = MetricInputs(
        weights=Weights.read(args.weights),
        device=pick_device(args.device),
        batch_size=args.batch_size,
        reference=reference,
    )
    if inputs.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {inputs.batch_size}")
    metrics, by_picture = _earlier(run)
    missing: dict[str, str] = {}
    for name, row in rows.items():
        if args.missing and "value" in metrics.get(name, {}):
            continue
        try:
            measured = row.measure(row.of(run.pictures), inputs)
        except Inapplicable as reason:
            metrics[name] = {"inapplicable": str(reason)}
            continue
        except Unavailable as reason:
            missing[name] = str(reason)
            if "value" not in metrics.get(name, {}):
                metrics[name] = {"unavailable": str(reason)}
            continue
        metrics[name] = summary(name, measured, run.pictures) | {"source": row.source}
        for picture in run.pictures:
            entry = by_picture.setdefault(picture.id, {"values": {}, "details": {}})
            for key, found in (("values", measured.values), ("details", measured.details)):
                entry[key].pop(name, None)
                if picture.id in found:
                    entry[key][name] = found[picture.id]
        _write(run, metrics, by_picture)  # one by one: what was measured outlives a kill
    _write(run, metrics, by_picture)
    if missing and args.require:
        raise ValueError("; ".join(f"{name} is unavailable: {reason}" for name, reason in missing.items()))
    kept = [f"{name}: an earlier value is kept, now unavailable: {r}" for name, r in missing.items()]
    kept = [text for text in kept if "value" in metrics[text.partition(":")[0]]]
    return "\n".join([*(line(name, metrics[name]) for name in names), *kept])


def summary(name: str, measured: Measurement, pictures: Sequence[Picture]) -> dict[str, Any]:
    """value, n, interval of the run and of each category; interval is None where no picture has a value of its own,
    and of a single prompt."""
    known = [picture for picture in pictures if picture.id in measured.values]
    groups: dict[str, list[Picture]] = {"": known}
    for picture in known:
        if picture.category:
            groups.setdefault(picture.category, []).append(picture)
    if measured.totals:
        sizes = {category: sum(category in ("", p.category) for p in pictures) for category in measured.totals}
        found = {c: {"value": v, "n": sizes[c], "interval": None} for c, v in measured.totals.items()}
    else:
        found = {category: _mean(measured.values, group) for category, group in groups.items()}
    whole = found.pop("")
    full = f"{name} ({measured.suffix})" if measured.suffix else name
    return {"name": full} | whole | {"categories": found, "settings": dict(measured.settings)}


def line(name: str, entry: Mapping[str, Any]) -> str:
    for reason in ("inapplicable", "unavailable"):
        if reason in entry:
            return f"{name}: {reason}: {entry[reason]}"
    cells = [f"{entry['name']}: {cell(entry)}, {entry['n']} pictures"]
    cells += [f"  {category}: {cell(row)}, {row['n']} pictures" for category, row in entry["categories"].items()]
    return "\n".join(cells)


def cell(row: Mapping[str, Any]) -> str:
    """The value with its 95 % interval, as the paper writes it: four digits after the point, three of a large one."""
    digits = 3 if abs(row["value"]) > 1 else 4
    value = f"{row['value']:.{digits}f}"
    if row["interval"] is None:
        return value
    low, high = row["interval"]
    return f"{value} ({low:.{digits}f}-{high:.{digits}f})"


def read_scores(run: Run) -> dict[str, Any]:
    """The whole scores.json. Raises ValueError where there is none, or one of another manifest."""
    path = run.folder / SCORES
    if not path.is_file():
        raise ValueError(f"{run.folder} has no {SCORES}; make it with `evaluate score`")
    try:
        scores = json.loads(path.read_text(encoding="utf-8"))
        same = scores["manifest"] == run.print
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is not what `evaluate score` writes; delete it and give that again") from None
    if not same:
        raise ValueError(f"{path} is of other pictures than {run.folder} holds now; give `evaluate score` again")
    return scores


def _mean(values: Mapping[int, float], pictures: Sequence[Picture]) -> dict[str, Any]:
    mine = [values[picture.id] for picture in pictures]
    prompts = [(picture.prompt, picture.category) for picture in pictures]
    return {
        "value": sum(mine) / len(mine),
        "n": len(mine),
        "interval": interval(mine, prompts) if len(set(prompts)) > 1 else None,
    }


def _earlier(run: Run) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    """(metrics, values by picture) of an earlier call on the same manifest."""
    try:
        metrics = read_scores(run)["metrics"]
    except ValueError:
        return {}, {}
    path = run.folder / SCORES_BY_PICTURE
    entries: Iterable[dict] = map(json.loads, path.read_text(encoding="utf-8").splitlines()) if path.is_file() else ()
    return metrics, {entry["id"]: {key: entry[key] for key in ("values", "details")} for entry in entries}


def _write(run: Run, metrics: Mapping[str, Any], by_picture: Mapping[int, Mapping[str, Any]]) -> None:
    lines = [
        json.dumps({"id": p.id, "prompt": p.prompt, "category": p.category, "seed": p.seed} | dict(by_picture[p.id]))
        for p in run.pictures
        if p.id in by_picture
    ]
    write_text(run.folder / SCORES_BY_PICTURE, "".join(f"{text}\n" for text in lines))
    whole = {
        "manifest": run.print,
        "pictures": len(run.pictures),
        "prompts": len({(picture.prompt, picture.category) for picture in run.pictures}),
        "prompts_cut": len({(picture.prompt, picture.category) for picture in run.pictures if picture.cut}),
        "seeds": run.seeds,
        "settings": run.settings,
        "bridge": run.bridge,
        "metrics": dict(metrics),
        "environment": environment(),
    }
    write_text(run.folder / SCORES, json.dumps(whole, indent=1, ensure_ascii=False))
