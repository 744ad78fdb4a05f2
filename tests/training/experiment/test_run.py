"""A plan of tiny models from its vision model's training to the page, cut off and gone on with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from lavi_bridge.tests.training.tiny import write_recipe
from lavi_bridge.training.cli import main
from lavi_bridge.training.experiment.plan import read_plan
from lavi_bridge.training.experiment.result import Result
from lavi_bridge.training.experiment.run import PROMPTS
from PIL import Image

PLAN = """
title = "Tiny"
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
name = "random"
like = "{models}/text_encoder"
seed = 3
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
set = ["language.model={{work}}/random", "vision.model={{work}}/small/vision"]
[[row]]
name = "own"
label = "Own"
axes = ["language"]
bridge = "{{work}}/small/bridge.safetensors"
set = ["vision.model={{work}}/small/vision"]
[[claim]]
text = "It matters"
better = "full"
worse = "random"
on = ["seen words", "unseen pairs"]
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
    assert main([*command, "--seeds", "1"]) == 0
    page = Path(capsys.readouterr().out.strip())
    assert page == work / "README.md" and "3 of 5 runs are in" in page.read_text()
    assert "Full: 1 of 2; Random: 1 of 2; of all others, all" in page.read_text()
    first = (work / "full-1" / "result.json").stat().st_mtime_ns
    assert main(command) == 0
    assert (work / "full-1" / "result.json").stat().st_mtime_ns == first  # not done again
    text = page.read_text()
    assert "5 of 5 runs are in" in text and "Not complete" not in text and "Which ear?" in text
    assert "| It matters | Full - Random; seen words, unseen pairs | " in text
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
    assert recipes[0]["seed"] == 2 and recipes[1]["language"]["model"] == str(work / "random")
    assert not (work / "full-1" / "state").exists()  # what a run needs to go on is of no more use

    assert main([*command, "--page-only", "-o", str(tmp_path / "page" / "README.md")]) == 0
    assert (tmp_path / "page" / "language.png").is_file()
    plan.write_text(plan.read_text().replace("guidance = 1.5", "guidance = 2.0"))
    assert main([*command, "--page-only"]) == 2
    assert "was judged with" in capsys.readouterr().err
    assert main([*command, "--rows", "other"]) == 2
    assert "the plan has no rows other" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('axes = ["language"]\n[[row]]', 'axes = ["tongue"]\n[[row]]', "rows name the axes tongue"),
        ('better = "full"', 'better = "best"', "claims name the rows best"),
        ("unseen pairs", "unseen things", "claims are on unseen things"),
        ('name = "own"', 'name = "full"', "names of their own"),
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
