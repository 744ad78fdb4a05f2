"""Two bridges from one file to one table, cut off and gone on with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lavi_bridge.tests.training.evaluation.models import write_weights
from lavi_bridge.tests.training.evaluation.test_own_encoder import write_pipeline
from lavi_bridge.training import recipe
from lavi_bridge.training.commands import main
from lavi_bridge.training.evaluation.paper_figures import PAPER
from lavi_bridge.training.evaluation.suite import read_suite

SUITE = """
prompts = [{prompts}]
paper = "ablation"
seeds = ["3..4"]
steps = 2
size = 32
weights = {weights}
metrics = ["clip-score", "blip-vqa"]
[[bridge]]
name = "SD"
bridge = "own"
vision_model = {sd}
[[bridge]]
name = "w/o tiny"
bridge = {bridge}
language_model = {text}
vision_model = {vision}
vae = {vae}
"""


@pytest.fixture
def suite(bridge: Path, tiny: Path, models: dict[str, Path], tmp_path: Path) -> Path:
    (tmp_path / "color_val.txt").write_text("a red circle and a blue square\n")
    (tmp_path / "short.tsv").write_text("a green cross\tshort\na yellow triangle\tshort\n")
    weights = write_weights(tmp_path / "w.toml", {"clip-b32": models["clip"], "blip-vqa": models["blip"]})
    values = {
        "weights": weights,
        "sd": write_pipeline(tmp_path / "sd"),
        "bridge": bridge,
        "text": tiny / "text_encoder",
        "vision": tiny / "vision",
        "vae": tiny / "vae.safetensors",
    }
    text = {key: json.dumps(str(value)) for key, value in values.items()}
    text["prompts"] = ", ".join(json.dumps(str(tmp_path / name)) for name in ("color_val.txt", "short.tsv"))
    path = tmp_path / "suite.toml"
    path.write_text(SUITE.format(**text))
    return path


def test_one_command_to_the_table(suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = tmp_path / "work"
    command = ["evaluate", "suite", str(suite), "--work", str(work)]
    assert main(command) == 0
    text = capsys.readouterr().out.strip()
    assert text == (work / "table.md").read_text().strip()
    head, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"
    )
    assert head == ["", "SD", "w/o tiny", *(f"{name} (reported)" for name in PAPER["ablation"].columns)]
    found = {row[0]: row[1:3] for row in rows[:14]}
    assert all("(" in cell for cell in found["Short - CLIP Score"]) and found["Short - FID"] == ["-", "-"]
    assert found["Comp - Color"][0] != found["Comp - Color"][1] and "-" not in found["Comp - Color"]
    scores = [json.loads((work / name / "scores.json").read_text()) for name in ("SD", "w-o tiny")]
    assert [score["pictures"] for score in scores] == [6, 6] and set(scores[0]["metrics"]) == {"clip-score", "blip-vqa"}

    before = {path: path.stat().st_mtime_ns for path in work.rglob("*.png")}
    (work / "w-o tiny" / "samples" / "000004.png").unlink()
    assert main(command) == 0
    assert capsys.readouterr().out.strip() == text  # drawn again, from the same noise
    again = [path.name for path in work.rglob("*.png") if path.stat().st_mtime_ns != before[path]]
    assert again == ["000004.png"]
    suite.write_text(suite.read_text().replace("color_val.txt", "shape_val.txt").replace("w.toml", "v.toml"))
    assert main(command) == 2  # all at once, before the first picture
    said = capsys.readouterr().err
    assert all(f"{tmp_path / name}, " in said or f"{tmp_path / name}; " in said for name in ("shape_val.txt", "v.toml"))
    suite.write_text(suite.read_text().replace("shape_val.txt", "color_val.txt").replace("v.toml", "w.toml"))
    suite.write_text(suite.read_text().replace("steps = 2", "steps = 3"))
    assert main(command) == 2
    assert "was begun with settings.steps 2, now it is 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('paper = "ablation"', 'paper = "appendix"', "unknown table of the paper 'appendix'"),
        ("size = 32", "sizes = 32", "unknown key sizes"),
        ('name = "w/o tiny"', 'name = "SD"', "names of their own"),
        ('name = "w/o tiny"', 'name = ".."', "names of their own, which can be folders"),
        ("language_model", "vae_model", "unknown key bridge"),
        ('"blip-vqa"]', '"vqa"]', "unknown metric 'vqa'"),
        ('bridge = "own"', 'bridge = "other"', "bridge SD names no language_model"),
    ],
)
def test_a_suite_that_does_not_fit_is_refused(suite: Path, old: str, new: str, said: str) -> None:
    suite.write_text(suite.read_text().replace(old, new))
    with pytest.raises(ValueError, match=said):
        read_suite(suite)


def test_the_committed_suites_are_the_papers_tables() -> None:
    folder = Path(recipe.__file__).parents[1] / "recipes" / "evaluation"
    for name in PAPER:
        made = read_suite(folder / f"{name}.toml")
        assert (made.paper, [entry.name for entry in made.bridge]) == (name, list(PAPER[name].columns))
        assert (made.sampler, made.steps, made.guidance, made.quality_suffix) == ("unipc", 50, 7.5, False)
        assert all(Path(entry.bridge).parts[:2] == ("runs", "paper") for entry in made.bridge if entry.bridge != "own")
    assert read_suite(folder / "demo.toml").bridge[0].bridge == "demo:own"
