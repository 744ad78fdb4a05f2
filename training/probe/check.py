"""Whether a probe ranks as the pictures do: against the judged runs of an experiment.

Rows are compared that differ in nothing but the language model, frozen, and its hidden states. Spearman's rank
correlation of the rows' means, with the 95 % interval of rows, and of each its seeds, drawn again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...lavi_core.files import write_bytes, write_text
from ..evaluation.shapebench import GROUPS
from ..evaluation.table import markdown
from ..experiment.compare import share
from ..experiment.page import collect
from ..experiment.plan import Plan, Row, read_plan
from ..experiment.result import Result
from ..experiment.run import make_control
from ..recipe import Recipe, read_recipe
from .captions import of_shapebench
from .measure import LATE, PENALTIES, SOON, TEST, TOLD, UNSEEN, Key, Probed
from .plot import Point, scatter
from .run import probe, targets_of
from .targets import CAPTION, STATES, WORD

LEAST, SAMPLES = 4, 4000
# Figures, each the mean of these shares; penalty by penalty.
SHOWN = (
    ("teacher, both", ((TEST, STATES), (UNSEEN, STATES))),
    ("teacher, seen words", ((TEST, STATES),)),
    ("teacher, new words", ((UNSEEN, STATES),)),
    ("teacher, new words told", ((TOLD, STATES),)),
    ("no teacher, both", ((TEST, CAPTION), (UNSEEN, WORD))),
    ("no teacher, seen words", ((TEST, CAPTION),)),
    ("no teacher, new words", ((UNSEEN, WORD),)),
    ("no teacher, new words told", ((TOLD, WORD),)),
)


@dataclass(frozen=True)
class Compared:
    """A row: what was probed for each of its seeds, and what was judged of them."""

    row: Row
    probed: Sequence[Mapping[Key, float]]
    results: Sequence[Result]

    def probe(self, keys: Sequence[Key]) -> float:
        return float(np.mean([shares[key] for shares in self.probed for key in keys]))

    def judged(self, categories: Sequence[str]) -> tuple[float, ...]:
        """Of each seed."""
        return tuple(float(np.mean([result.correct[name] for name in categories])) for result in self.results)


def check(path: Path, work: Path, folder: Path, count: int, device: torch.device, teacher: str = "") -> str:
    """Probe what the plan's rows were trained with and write check.md, check.json and check.png to ``folder``; returns
    the page. work: where the results are; controls with random weights are made anew in ``folder``. teacher: "" = the
    vision model of the plan's recipe."""
    plan = read_plan(path)
    base = read_recipe(path.parent / plan.recipe)
    results = collect(plan, work)
    split = of_shapebench(base.data.vocabulary, count)
    targets = targets_of(split, teacher or base.vision.model, base.prompt.max_length, device)
    asked = {
        row.name: _asked(plan, row, path.parent, work, results[row.name]) for row in plan.row if row.name in results
    }
    states: dict[str, set[str]] = {}
    for recipes in asked.values():
        for recipe in recipes:
            states.setdefault(recipe.language.model, set()).add(str(recipe.prompt.hidden_states))
    probed: dict[str, Probed] = {}
    for model, wanted in states.items():
        found = _made(model, plan, work, folder)
        probed[model] = probe(found, split, targets, device, ",".join(sorted(wanted)), base.prompt.max_length)
    groups: dict[str, list[Compared]] = {}
    for row in plan.row:
        if recipes := asked.get(row.name):
            shares = [_shares(probed[recipe.language.model], recipe) for recipe in recipes]
            groups.setdefault(_group(recipes[0]), []).append(Compared(row, shares, results[row.name]))
    kept = [rows for rows in groups.values() if len(rows) >= LEAST]
    if not kept:
        raise ValueError(
            f"{path} has no {LEAST} judged rows in {work} that differ in the frozen language model or its "
            "hidden states alone"
        )
    text = _page(kept, split.name, f"lavi-bridge probe --check {path.as_posix()} --work {work.as_posix()} -o FOLDER")
    write_text(folder / "check.md", text)
    write_text(folder / "check.json", json.dumps([_facts(rows) for rows in kept], indent=1))
    write_bytes(folder / "check.png", _picture(kept[0]))
    return text


def _asked(plan: Plan, row: Row, folder: Path, work: Path, results: Sequence[Result]) -> list[Recipe]:
    """The recipes of the row's results; none where the probe says nothing of it: the language model learns too, a file
    is judged as it is, or the adapter chooses among all layers."""
    if row.bridge:
        return []
    recipes = [plan.recipe_of(row, result.seed, folder, work) for result in results]
    which = recipes[0].prompt.hidden_states
    if recipes[0].language.train != "frozen" or which == "learned_mean" or isinstance(which, tuple):
        return []
    return recipes


def _made(model: str, plan: Plan, work: Path, folder: Path) -> str:
    """The model itself; a control with random weights that is not in ``work`` is made in ``folder``."""
    for control in plan.control:
        for seed in plan.seeds:
            if Path(model) == work / f"{control.name}-{seed}" and not Path(model).is_dir():
                made = folder / f"{control.name}-{seed}"
                if not made.is_dir():
                    folder.mkdir(parents=True, exist_ok=True)
                    make_control(control, seed, folder)
                return str(made)
    return model


def _shares(probed: Probed, recipe: Recipe) -> dict[Key, float]:
    which = recipe.prompt.hidden_states
    if isinstance(which, int):
        which = which if which >= 0 else probed.layers + 1 + which
        which = "last" if which == probed.layers else which
    return {key: found.value for key, found in probed.shares[which].items()}


def _group(recipe: Recipe) -> str:
    facts = asdict(recipe)
    for section, key in (("language", "model"), ("prompt", "hidden_states"), ("data", "cache")):
        del facts[section][key]
    return json.dumps(
        {key: value for key, value in facts.items() if key not in ("output", "seed", "name")}, default=str
    )


def correlation(rows: Sequence[Compared], keys: Sequence[Key], categories: Sequence[str]) -> tuple[float, float, float]:
    """Spearman's rho and its interval."""
    probed = np.array([row.probe(keys) for row in rows])
    seeds = [np.array(row.judged(categories)) for row in rows]
    rho = _rank_correlation(probed[None], np.array([[each.mean() for each in seeds]]))[0]
    rng = np.random.default_rng(0)
    judged = np.stack([rng.choice(each, (SAMPLES, len(each))).mean(1) for each in seeds], axis=1)
    picked = rng.integers(len(rows), size=(SAMPLES, len(rows)))
    picked = picked[[len(set(row)) > 2 for row in picked.tolist()]]  # of fewer there is no order to speak of
    drawn = _rank_correlation(probed[picked], np.take_along_axis(judged[: len(picked)], picked, axis=1))
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return float(rho), float(low), float(high)


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a, b: [samples rows] -> [samples]; not finite where all rows are equal."""
    from scipy.stats import rankdata

    a, b = (ranks - ranks.mean(1, keepdims=True) for ranks in (rankdata(a, axis=1), rankdata(b, axis=1)))
    with np.errstate(invalid="ignore"):
        return (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))


def _page(groups: Sequence[Sequence[Compared]], captions: str, command: str) -> str:
    parts = ["# The probe beside the judged pictures", f"Written by `{command}`, on captions of {captions}."]
    for rows in groups:
        names = ", ".join(row.row.label for row in rows)
        parts += [f"## {len(rows)} rows", f"They differ in the language model and its hidden states alone: {names}."]
        parts += [_values(rows), _correlations(rows)]
    return "\n\n".join(parts) + "\n"


def _values(rows: Sequence[Compared]) -> str:
    figures = _figures(rows, SOON)
    head = ["row", *(title for title, _ in figures), *(f"judged: {name}" for name, _ in GROUPS)]
    lines = []
    for row in sorted(rows, key=lambda row: -np.mean(row.judged(GROUPS[0][1]))):
        judged = [f"{np.mean(row.judged(categories)):.3f}" for _, categories in GROUPS]
        lines.append([row.row.label, *(f"{row.probe(keys):.3f}" for _, keys in figures), *judged])
    return markdown(head, lines)


def _figures(rows: Sequence[Compared], penalty: float) -> list[tuple[str, list[Key]]]:
    """Those of SHOWN that were probed."""
    known = rows[0].probed[0]
    found = [(title, [(kind, part, penalty) for kind, part in pairs]) for title, pairs in SHOWN]
    return [(title, keys) for title, keys in found if all(key in known for key in keys)]


def _correlations(rows: Sequence[Compared]) -> str:
    lines = []
    for penalty in (SOON, *(penalty for penalty in PENALTIES if penalty != SOON)):
        for title, keys in _figures(rows, penalty):
            found = [correlation(rows, keys, categories) for _, categories in GROUPS]
            told = f"{penalty:g}" + {SOON: " (soon)", LATE: " (in the end)"}.get(penalty, "")
            lines.append([title, told, *(f"{rho:+.2f} ({low:+.2f} to {high:+.2f})" for rho, low, high in found)])
    return markdown(["probe", "penalty", *(name for name, _ in GROUPS)], lines)


def _facts(rows: Sequence[Compared]) -> dict[str, Any]:
    figures = [(title, penalty, keys) for penalty in PENALTIES for title, keys in _figures(rows, penalty)]
    return {
        "rows": [
            {
                "row": row.row.name,
                "probe": [{"figure": title, "penalty": p, "share": row.probe(keys)} for title, p, keys in figures],
                "judged": {name: row.judged(categories) for name, categories in GROUPS},
            }
            for row in rows
        ],
        "spearman": [
            {"figure": title, "penalty": penalty, "judged": name, "rho": rho, "interval": interval}
            for title, penalty, keys in figures
            for name, categories in GROUPS
            for rho, *interval in [correlation(rows, keys, categories)]
        ],
    }


def _picture(rows: Sequence[Compared]) -> bytes:
    title, keys = _figures(rows, SOON)[0]
    panels = []
    for name, categories in (GROUPS[0], GROUPS[-1]):
        points = []
        for row in rows:
            found = share(row.results, categories)
            points.append(Point(row.row.label, row.probe(keys), found.mean, found.low, found.high))
        rho, low, high = correlation(rows, keys, categories)
        panels.append((f"{name}: rank correlation {rho:+.2f} ({low:+.2f} to {high:+.2f})", points))
    return scatter(panels, f"probe: {title}", "judged: share of right pictures")
