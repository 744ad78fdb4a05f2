"""The check of a probe against an experiment: it pairs the rows that it says, and its correlation is Spearman's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from lavi_bridge.tests.training.tiny import write_recipe
from lavi_bridge.training.commands import main
from lavi_bridge.training.evaluation.shapebench import ROWS
from lavi_bridge.training.experiment.plan import Row, read_plan
from lavi_bridge.training.experiment.result import Result
from lavi_bridge.training.probe.check import Compared, correlation
from lavi_bridge.training.probe.measure import SOON, TEST
from lavi_bridge.training.probe.targets import STATES
from PIL import Image
from scipy.stats import spearmanr

pytestmark = pytest.mark.usefixtures("on_cpu")
KEY = (TEST, STATES, SOON)
FIGURE = ("teacher, seen words", SOON)
PLAN = """
title = "Tiny"
text = "A plan for a test."
recipe = "bridge.toml"
seeds = [1, 2]
prompts = 20
steps = 1
guidance = 1.5
[[axis]]
name = "language"
title = "Language axis"
text = "Which ear?"
[[control]]
name = "drawn"
like = {models}
"""
ROW = """
[[row]]
name = "{name}"
label = "Row {name}"
axes = ["language"]
set = [{values}]
"""
FROZEN = '"language.train=frozen"'
LANGUAGE = {
    "words": f'{FROZEN}, "prompt.hidden_states=0"',
    "one": f'{FROZEN}, "prompt.hidden_states=1"',
    "last": FROZEN,
    "mean": f'{FROZEN}, "prompt.hidden_states=normalized_mean"',
    "deaf": f'{FROZEN}, "language.model={{work}}/drawn-{{seed}}"',
}
OTHERS = {
    "lora": "",
    "linear": f'{FROZEN}, "adapter.kind=linear"',
    "all": f'{FROZEN}, "prompt.hidden_states=learned_mean"',
}


def result(row: str, seed: int, share: float, settings: dict | None = None) -> Result:
    answers = tuple(int(i < round(20 * share)) for i in range(20))
    facts = {"settings": settings or {}, "correct": {one.name: answers for one in ROWS}, "aspects": {}, "trained": {}}
    return Result(
        row=row, seed=seed, distance=0.0, steps=1, batch_size=1, seconds=0.0, loss=None, environment={}, **facts
    )


def compared(name: str, probed: float, judged: list[float]) -> Compared:
    results = [result(name, seed, share) for seed, share in enumerate(judged)]
    return Compared(Row(name=name, label=name, axes=()), [{KEY: probed}] * len(judged), results)


def test_it_is_spearmans_correlation_of_the_rows_means() -> None:
    probed, judged = [0.1, 0.4, 0.3, 0.9, 0.5], [[0.1, 0.0], [0.5, 0.3], [0.6, 0.4], [0.9, 0.9], [0.4, 0.4]]
    rows = [compared(str(i), p, j) for i, (p, j) in enumerate(zip(probed, judged, strict=True))]
    rho, low, high = correlation(rows, [KEY], ("single", "color"))
    assert rho == pytest.approx(spearmanr(probed, np.mean(judged, axis=1)).statistic) and 0 < rho < 1
    assert low < rho < high <= 1
    more = correlation(rows * 6, [KEY], ("single",))
    assert more[2] - more[1] < high - low  # more rows tell more


def test_a_perfect_order_is_one() -> None:
    rows = [compared(str(i), i / 10, [i / 10, i / 10]) for i in range(6)]
    assert correlation(rows, [KEY], ("single",)) == pytest.approx((1, 1, 1))


def test_rows_that_differ_in_the_language_model_alone_are_compared(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_recipe(tmp_path / "bridge.toml", tiny, tmp_path / "unused")
    rows = "".join(ROW.format(name=name, values=values) for name, values in (LANGUAGE | OTHERS).items())
    path, work, output = tmp_path / "plan.toml", tmp_path / "work", tmp_path / "out"
    path.write_text(PLAN.format(models=json.dumps(str(tiny / "text_encoder"))) + rows)
    settings = vars(read_plan(path).settings())
    for number, name in enumerate(LANGUAGE | OTHERS):
        for seed in (1, 2):
            folder = work / f"{name}-{seed}"
            folder.mkdir(parents=True)
            result(name, seed, number / 10, settings).save(folder)
    command = ["probe", "--check", str(path), "--work", str(work), "--count", "96", "--device", "cpu"]
    command += ["--teacher", str(tiny / "text_encoder"), "-o", str(output)]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "## 5 rows" in text and all(f"| Row {name} |" in text for name in LANGUAGE)
    assert not any(f"Row {name}" in text for name in OTHERS)
    assert (output / "check.md").read_text() == text.removesuffix("\n")
    (found,) = json.loads((output / "check.json").read_text())
    assert {row["row"]: row["judged"]["seen words"] for row in found["rows"]} == {
        name: pytest.approx([number / 10] * 2) for number, name in enumerate(LANGUAGE)
    }
    heard = [_soon(row) for row in found["rows"]]
    (one,) = [
        each["rho"]
        for each in found["spearman"]
        if (each["figure"], each["penalty"], each["judged"]) == (*FIGURE, "seen words")
    ]
    assert one == pytest.approx(spearmanr(heard, range(5)).statistic)
    assert not (work / "drawn-1").joinpath("config.json").exists() and (output / "drawn-2" / "config.json").is_file()
    with Image.open(output / "check.png") as picture:
        assert picture.width == 1320
    for name in ("words", "one"):
        for seed in (1, 2):
            (work / f"{name}-{seed}" / "result.json").unlink()
    assert main(command) == 2
    assert "has no 4 judged rows" in capsys.readouterr().err


def _soon(row: dict) -> float:
    return next(one["share"] for one in row["probe"] if (one["figure"], one["penalty"]) == FIGURE)
