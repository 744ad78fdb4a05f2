"""The committed page is what its results say, and a change of either alone is seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lavi_bridge.training import experiment
from lavi_bridge.training.experiment.frechet import Floor
from lavi_bridge.training.experiment.page import collect, words
from lavi_bridge.training.experiment.plan import read_plan

FOLDER = Path(experiment.__file__).parent
PLAN = FOLDER.parent / "recipes" / "experiment" / "plan.toml"
COMMAND = "lavi-bridge experiment training/recipes/experiment/plan.toml --work FOLDER"


def test_the_page_is_what_the_results_say() -> None:
    plan, work = read_plan(PLAN), FOLDER / "results"
    results = collect(plan, work)
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert words(plan, results, Floor.load(work), COMMAND) == text
    for axis in plan.axis:
        assert f"({axis.name}.png)" in text and (FOLDER / f"{axis.name}.png").is_file()
    first = results["full"][0]
    turned = {name: tuple(1 - answer for answer in answers) for name, answers in first.correct.items()}
    changed = results | {"full": [replace(first, correct=turned), *results["full"][1:]]}
    assert words(plan, changed, Floor.load(work), COMMAND) != text
