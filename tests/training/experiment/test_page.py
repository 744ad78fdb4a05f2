"""The committed page is what its results say, and a change of either alone is seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from lavi_bridge.training import experiment
from lavi_bridge.training.experiment.frechet import Floor
from lavi_bridge.training.experiment.page import collect, words
from lavi_bridge.training.experiment.plan import read_plan

FOLDER = Path(experiment.__file__).parent
RECIPES = FOLDER.parent / "recipes" / "experiment"


@pytest.mark.parametrize(("plan_file", "folder"), [("plan.toml", FOLDER), ("connectors.toml", FOLDER / "connectors")])
def test_the_page_is_what_the_results_say(plan_file: str, folder: Path) -> None:
    plan, work = read_plan(RECIPES / plan_file), folder / "results"
    results = collect(plan, work)
    text = (folder / "README.md").read_text(encoding="utf-8")
    command = f"lavi-bridge experiment training/recipes/experiment/{plan_file} --work FOLDER"
    assert words(plan, results, Floor.load(work), command) == text
    for axis in plan.axis:
        assert f"({axis.name}.png)" in text and (folder / f"{axis.name}.png").is_file()
    name, found = next((name, found) for name, found in results.items() if found[0].steps)
    turned = {name: tuple(1 - answer for answer in answers) for name, answers in found[0].correct.items()}
    changed = results | {name: [replace(found[0], correct=turned), *found[1:]]}
    assert words(plan, changed, Floor.load(work), command) != text


def test_seconds_of_several_machines_say_which() -> None:
    plan, work = read_plan(RECIPES / "plan.toml"), FOLDER / "results"
    results = collect(plan, work)
    plain = words(plan, results, Floor.load(work), "")
    row = next(row for row in plan.row if results[row.name][0].steps and len(results[row.name]) > 1)
    first, *rest = results[row.name]
    elsewhere = replace(first, environment=first.environment | {"device": "a machine"})
    text = words(plan, results | {row.name: [elsewhere, *rest]}, Floor.load(work), "")
    assert "CPU seconds | machine |" in text and "| machine |" not in plain
    timed = text.partition("CPU seconds | machine |")[2]
    (line,) = (line for line in timed.splitlines() if line.startswith(f"| {row.label} |"))
    assert line.endswith("| 1, 2 |") and "(2) a machine" in timed
