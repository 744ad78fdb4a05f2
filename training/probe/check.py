"""Whether a probe ranks as the pictures do: against the judged runs of an experiment.

Rows are compared that differ in nothing but the language model, frozen, and its hidden states. Spearman's rank
correlation of the rows' means, with the 95 % interval of rows, and of each its seeds, drawn again.
"""

from __future__ import annotations

import json
import logging
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
from .measure import LATE, PENALTIES, SOON, TEST, UNSEEN, Key, Probed
from .plot import Point, scatter
from .report import KINDS
from .run import probe, targets_of
from .targets import CAPTION, NEIGHBOURS, STATES, WORD

LEAST, SAMPLES = 4, 4000
SHOWN = (
    ("own encoder's states", TEST, STATES),
    ("own encoder's states, new words", UNSEEN, STATES),
    ("word and neighbours", TEST, CAPTION),
    ("neighbours", TEST, NEIGHBOURS),
    ("word, new words", UNSEEN, WORD),
)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compared:
    """A row: what was probed for each of its seeds, and what was judged of them."""

    row: Row
    probed: Sequence[Mapping[Key, float]]
    results: Sequence[Result]

    def probe(self, key: Key) -> float:
        return float(np.mean([shares[key] for shares in self.probed]))

    def judged(self, categories: Sequence[str]) -> tuple[float, ...]:
        """Of each seed."""
        return share(self.results, categories).seeds


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
            f"{path} has no {LEAST} judged rows in {work} that differ in the frozen language model or its hidden states alone"
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


def correlation(rows: Sequence[Compared], key: Key, categories: Sequence[str]) -> tuple[float, float, float]:
    """Spearman's rho and its interval."""
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    probed = np.array([row.probe(key) for row in rows])
    seeds = [np.array(row.judged(categories)) for row in rows]
    rho = float(spearmanr(probed, [each.mean() for each in seeds]).statistic)
    drawn = []
    while len(drawn) < SAMPLES:
        picked = rng.integers(len(rows), size=len(rows))
        judged = [rng.choice(seeds[i], len(seeds[i])).mean() for i in picked]
        if len(set(picked)) > 2 and len(set(judged)) > 1 and len(set(probed[picked])) > 1:  # else there are no ranks
            drawn.append(_rank_correlation(probed[picked], np.array(judged)))
    low, high = np.quantile(drawn, (0.025, 0.975))
    return rho, float(low), float(high)


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.stats import rankdata

    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def _page(groups: Sequence[Sequence[Compared]], captions: str, command: str) -> str:
    parts = ["# The probe beside the judged pictures", f"Written by `{command}`, on captions of {captions}."]
    for rows in groups:
        names = ", ".join(row.row.label for row in rows)
        parts += [f"## {len(rows)} rows", f"They differ in the language model and its hidden states alone: {names}."]
        parts += [_values(rows), _correlations(rows)]
    return "\n\n".join(parts) + "\n"


def _values(rows: Sequence[Compared]) -> str:
    keys = [(title, (kind, part, SOON)) for title, kind, part in SHOWN if (kind, part, SOON) in rows[0].probed[0]]
    head = ["row", *(f"{title}, soon" for title, _ in keys), *(f"judged: {name}" for name, _ in GROUPS)]
    lines = []
    for row in sorted(rows, key=lambda row: -np.mean(row.judged(GROUPS[0][1]))):
        judged = [f"{np.mean(row.judged(categories)):.3f}" for _, categories in GROUPS]
        lines.append([row.row.label, *(f"{row.probe(key):.3f}" for _, key in keys), *judged])
    return markdown(head, lines)


def _correlations(rows: Sequence[Compared]) -> str:
    lines = []
    for title, kind, part in SHOWN:
        for penalty in PENALTIES:
            key = (kind, part, penalty)
            if key in rows[0].probed[0]:
                found = [correlation(rows, key, categories) for _, categories in GROUPS]
                name = {SOON: " (soon)", LATE: " (in the end)"}.get(penalty, "")
                lines.append(
                    [title, f"{penalty:g}{name}", *(f"{r:+.2f} ({lo:+.2f} to {hi:+.2f})" for r, lo, hi in found)]
                )
    return markdown(["probe", "penalty", *(name for name, _ in GROUPS)], lines)


def _facts(rows: Sequence[Compared]) -> dict[str, Any]:
    return {
        "rows": [
            {
                "row": row.row.name,
                "probe": [
                    {"captions": k[0], "part": k[1], "penalty": k[2], "share": row.probe(k)} for k in row.probed[0]
                ],
                "judged": {name: row.judged(categories) for name, categories in GROUPS},
            }
            for row in rows
        ],
        "spearman": [
            {"captions": key[0], "part": key[1], "penalty": key[2], "judged": name, "rho": rho, "interval": interval}
            for key in rows[0].probed[0]
            for name, categories in GROUPS
            for rho, *interval in [correlation(rows, key, categories)]
        ],
    }


def _picture(rows: Sequence[Compared]) -> bytes:
    part = STATES if (TEST, STATES, SOON) in rows[0].probed[0] else CAPTION
    panels = []
    for title, key, name in (
        ("seen words", (TEST, part, SOON), "seen words"),
        ("held-out synonyms", (UNSEEN, STATES if part == STATES else WORD, SOON), "held-out synonyms"),
    ):
        points = []
        for row in rows:
            found = share(row.results, dict(GROUPS)[name])
            points.append(Point(row.row.label, row.probe(key), found.mean, found.low, found.high))
        rho, low, high = correlation(rows, key, dict(GROUPS)[name])
        panels.append((f"{title}: rank correlation {rho:+.2f} ({low:+.2f} to {high:+.2f})", points))
    return scatter(panels, f"probe: share of {KINDS[part]}, soon", "judged: share of right pictures")
