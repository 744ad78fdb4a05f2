"""A plan of tiny models from its vision model's training to the page, cut off and gone on with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lavi_bridge.tests.training.tiny import write_recipe
from lavi_bridge.training.commands import main
from lavi_bridge.training.experiment import run
from lavi_bridge.training.experiment.frechet import Floor
from lavi_bridge.training.experiment.plan import read_plan
from lavi_bridge.training.experiment.result import NAME, Result
from lavi_bridge.training.experiment.run import PROMPTS, jobs
from lavi_bridge.training.loop import lock
from lavi_bridge.training.loop.step import TrainStep
from PIL import Image
from safetensors.torch import load_file

PLAN = """
title = "Tiny"
text = "A plan for a test."
recipe = "bridge.toml"
seeds = [1, 2]
prompts = 2
steps = 1
guidance = 1.5
[[axis]]
name = "language"
title = "Language axis"
text = "Which ear?"
[[control]]
name = "deaf"
like = "{models}/text_encoder"
[[vision]]
name = "small"
start = "small-start.toml"
recipe = "small.toml"
[[row]]
name = "full"
label = "Full"
axes = ["language"]
[[row]]
name = "random"
label = "Random"
axes = ["language"]
set = ["language.model={{work}}/deaf-{{seed}}", "vision.model={{work}}/small/vision"]
[[row]]
name = "own"
label = "Own"
axes = ["language"]
bridge = "{{work}}/small/bridge.safetensors"
set = ["vision.model={{work}}/small/vision"]
[[claim]]
text = "It matters"
whose = "paper"
better = "full"
worse = "random"
on = ["seen words", "unseen pairs"]
[[claim]]
text = "It draws better"
better = "full"
worse = "own"
on = ["distance"]
"""
HOLD = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("lock", sys.argv[1])
lock = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lock)
with lock.held(sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""
START = """
output = "unused"
vocabulary = "small"
latent_scale = 1.0
shift = 3.0
seed = 1
[unet]
block_out_channels = [32, 64]
cross_attention_dim = 32
layers_per_block = 1
attention_head_dim = 2
"""


@pytest.fixture
def plan(tiny: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "recipes"
    folder.mkdir()
    write_recipe(folder / "bridge.toml", tiny, tmp_path / "unused")
    whole = write_recipe(folder / "small.toml", tiny, tmp_path / "unused")
    changed = whole.read_text().replace("rank = 2\nalpha = 2.0\n[data]", 'train = "full"\n[data]')
    changed = changed.replace("rank = 2\nalpha = 2.0\nlearning_rate", 'train = "frozen"\nlearning_rate')
    whole.write_text(changed.replace("[adapter]\n", '[adapter]\nkind = "identity"\n'))
    (folder / "small-start.toml").write_text(START)
    path = folder / "plan.toml"
    path.write_text(PLAN.format(models=tiny))
    return path


def test_one_command_trains_judges_and_writes_the_page(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    command = ["experiment", str(plan), "--work", str(work)]
    assert main([*command, "--rows", "own"]) == 0
    page = Path(capsys.readouterr().out.strip())
    assert "No bridge of this plan has been trained yet." in page.read_text() and not (work / "deaf-1").exists()
    assert main([*command, "--seeds", "1"]) == 0
    page = Path(capsys.readouterr().out.strip())
    assert page == work / "README.md" and "3 of 5 runs are in" in page.read_text()
    assert "Full: 1 of 2; Random: 1 of 2; of all others, all" in page.read_text()
    first = (work / "full-1" / "result.json").stat().st_mtime_ns
    assert main(command) == 0
    assert (work / "full-1" / "result.json").stat().st_mtime_ns == first  # not done again
    text = page.read_text()
    assert "5 of 5 runs are in" in text and "Not complete" not in text and "Which ear?" in text
    assert "| It matters | paper | Full - Random; seen words, unseen pairs | " in text
    far = [Result.load(work / "own-1").distance - Result.load(work / f"full-{seed}").distance for seed in (1, 2)]
    low, high = min(far), max(far)
    change = f"{np.mean(far):+.3f} ({low:+.3f} to {high:+.3f}) | {far[0]:+.3f}, {far[1]:+.3f}"
    assert f"| It draws better | ours | Full - Own; distance | {change} | **" in text
    floor = Floor.load(work)
    assert 0 < floor.true < min(Result.load(path).distance for path in work.glob("*-1") if (path / NAME).is_file())
    assert f"| {floor.true:.2f} |" in text and f"| {floor.blank:.2f} |" in text
    full, other = (Result.load(work / name) for name in ("full-1", "full-2"))
    assert full.trained["language"] > 0 and full.trained["adapter"] > 0 and full.trained["vision"] > 0
    assert full.loss != other.loss and full.steps == 6
    assert Result.load(work / "own-1").steps == 0 and not (work / "own-2").exists()
    assert {len(answers) for answers in full.correct.values()} == {2} and len(full.correct) == 12
    with Image.open(work / "full-1" / "pictures.png") as strip:
        assert strip.size == (128 * len(PROMPTS), 128)
    with Image.open(work / "language.png") as grid:
        assert np.asarray(grid).std() > 0
    recipes = [json.loads((work / name / "recipe.json").read_text()) for name in ("full-2", "random-1")]
    assert recipes[0]["seed"] == 2 and recipes[1]["language"]["model"] == str(work / "deaf-1")
    controls = [load_file(work / f"deaf-{seed}" / "model.safetensors") for seed in (1, 2)]
    assert all(not torch.equal(controls[0][k], v) for k, v in controls[1].items() if v.dim() > 1)
    assert not (work / "full-1" / "state").exists()  # what a run needs to go on is of no more use

    assert main([*command, "--page-only", "-o", str(tmp_path / "page" / "README.md")]) == 0
    assert (tmp_path / "page" / "language.png").is_file()
    plan.write_text(plan.read_text().replace("guidance = 1.5", "guidance = 2.0"))
    assert main([*command, "--page-only"]) == 2
    assert "was judged with" in capsys.readouterr().err
    assert main([*command, "--rows", "other"]) == 2
    assert "the plan has no rows other" in capsys.readouterr().err


def test_a_row_that_is_cut_off_while_it_is_judged_is_not_trained_again(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    work = tmp_path / "work"
    command = ["experiment", str(plan), "--work", str(work), "--rows", "full", "--seeds", "1"]
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(run, "judged", cut_off)
        run.run(read_plan(plan), plan.parent, work, ["full"], [1])
    before = load_file(work / "full-1" / "bridge.safetensors")
    steps = (work / "full-1" / "log.jsonl").read_text().count('"loss"')
    assert steps and (work / "full-1" / "state").is_dir() and not (work / "full-1" / NAME).exists()
    monkeypatch.setattr(TrainStep, "__call__", cut_off)
    assert main(command) == 0
    assert Result.load(work / "full-1").steps == 6 and not (work / "full-1" / "state").exists()
    assert (work / "full-1" / "log.jsonl").read_text().count('"loss"') == steps
    assert all(
        torch.equal(tensor, before[key]) for key, tensor in load_file(work / "full-1" / "bridge.safetensors").items()
    )


def test_what_another_process_is_at_is_left_to_it(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    work = tmp_path / "work"
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(Path(lock.__file__)), str(work / "at-work" / "small")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout.readline() == "held\n"
        assert main(["experiment", str(plan), "--work", str(work), "--seeds", "1"]) == 0
        assert "1 of 5 runs are in" in Path(capsys.readouterr().out.strip()).read_text()
        assert "left to other processes" in caplog.text and ": small, random-1, own-1" in caplog.text
        assert (work / "full-1" / NAME).is_file() and not (work / "small").exists()
    finally:
        other.communicate("")
    assert main(["experiment", str(plan), "--work", str(work), "--seeds", "1"]) == 0
    assert "3 of 5 runs are in" in Path(capsys.readouterr().out.strip()).read_text()


def test_a_run_waits_for_what_it_needs_alone(plan: Path, tmp_path: Path) -> None:
    read = read_plan(plan)
    found = jobs(read, read.row, read.seeds, plan.parent, tmp_path / "work")
    needs = {job.name: [needed.name for needed in job.needs] for job in found}
    assert list(needs) == ["small", "deaf-1", "deaf-2", "full-1", "random-1", "own-1", "full-2", "random-2"]
    assert needs["random-2"] == ["small", "deaf-2"] and needs["own-1"] == ["small"] and needs["full-1"] == []
    alone = jobs(read, [row for row in read.row if row.name == "full"], (2,), plan.parent, tmp_path / "work")
    assert [job.name for job in alone] == ["full-2"]
    for name in ("random-1", "own-1", "random-2"):  # results alone, as of another machine
        (tmp_path / "work" / name).mkdir(parents=True)
        (tmp_path / "work" / name / NAME).write_text("{}")
    left = jobs(read, read.row, read.seeds, plan.parent, tmp_path / "work")
    assert [job.name for job in left if not job.done()] == ["full-1", "full-2"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('axes = ["language"]\n[[row]]', 'axes = ["tongue"]\n[[row]]', "rows name the axes tongue"),
        ('better = "full"', 'better = "best"', "claims name the rows best"),
        ("unseen pairs", "unseen things", "claims are on unseen things"),
        ("unseen pairs", "distance", "a claim on distance is on nothing else"),
        ('name = "own"', 'name = "full"', "names of their own, these have not: full"),
        ('name = "deaf"', 'name = "own"', "names of their own, these have not: own"),
        ("prompts = 2", "prompt = 2", "unknown key prompt"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(plan: Path, old: str, new: str, said: str) -> None:
    plan.write_text(plan.read_text().replace(old, new))
    with pytest.raises(ValueError, match=said):
        read_plan(plan)


def test_a_folder_without_results_gives_no_page(plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment", str(plan), "--work", str(tmp_path / "empty"), "--page-only"]) == 2
    assert "holds no result of this plan" in capsys.readouterr().err


def test_a_step_that_was_skipped_has_no_loss(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text('{"batch_size": 8}')
    lines = [{"step": 1, "loss": 0.5, "images_per_second": 4.0}, {"step": 2, "images_per_second": 4.0, "skipped": 1}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run._journal(tmp_path) == (4.0, 0.0, 0.5)
