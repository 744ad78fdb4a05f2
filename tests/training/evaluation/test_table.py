"""score and table on a run whose pictures are known, and the paper's figures against themselves."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
from lavi_bridge.tests.training.evaluation.conftest import write_run
from lavi_bridge.tests.training.evaluation.models import write_weights
from lavi_bridge.training.commands import main
from lavi_bridge.training.evaluation.generate import png
from lavi_bridge.training.evaluation.paper_figures import PAPER, ROWS
from lavi_bridge.training.evaluation.prompts import Prompt
from lavi_bridge.training.evaluation.run_folder import Run
from lavi_bridge.training.shapebench import GROUND, VOCABULARIES, prompts, render


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """8 ShapeBench prompts, seed 1: true pictures but for the last two, which are empty; 2 long prompts."""
    pairs = prompts("color", 8, 3, VOCABULARIES["small"])
    texts = [Prompt(text, "ShapeBench color") for text, _ in pairs]
    run = write_run(tmp_path / "run", [*texts, Prompt("a cat on a mat", "long"), Prompt("a dog", "long")], (1,), 128)
    for picture, (_, scene) in zip(run.pictures, pairs, strict=False):
        image = render(scene, 128) if picture.id < 6 else np.full((128, 128, 3), GROUND, np.uint8)
        picture.path.write_bytes(png(image))
    return run.folder


def test_score_and_table(folder: Path, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    weights = write_weights(tmp_path / "w.toml", {"clip-b32": models["clip"]})
    assert main(["evaluate", "score", str(folder), "--metrics", "shapes"]) == 0
    assert main(["evaluate", "score", str(folder), "--weights", str(weights), "--metrics", "clip-score", "fid"]) == 0
    scores = json.loads((folder / "scores.json").read_text())
    judged = scores["metrics"]["shapes"]
    assert (judged["value"], judged["n"]) == (0.75, 8)
    assert judged["interval"][0] < 0.75 < judged["interval"][1]
    bounds = judged["settings"]
    assert bounds["ceiling"]["ShapeBench color"] > 0.95 and bounds["chance"]["ShapeBench color"] < 0.1
    lines = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    cosines = [line["values"]["clip-score"] for line in lines if line["category"] == "long"]
    assert [line["values"].get("shapes") for line in lines] == [1.0] * 6 + [0.0] * 2 + [None] * 2
    assert lines[6]["details"]["shapes"]["found"] == []

    capsys.readouterr()
    assert main(["evaluate", "table", str(folder), "-o", str(tmp_path / "t.md")]) == 0
    text = capsys.readouterr().out.rstrip("\n")
    assert text == (tmp_path / "t.md").read_text().rstrip("\n")
    rows = _rows(text.partition("### clip-score")[0])
    assert rows[""] == ["run", *(f"{name} (reported)" for name in PAPER["language"].columns)]
    assert rows["Long - CLIP Score"][0].startswith(f"{np.mean(cosines):.4f} (")
    assert rows["Long - CLIP Score"][1:] == ["0.3120", "0.3111", "0.3179", "0.3193", "0.3231"]
    assert rows["Comp - Color"][0] == "-"  # ShapeBench's colours are not T2I-CompBench's
    judged = _rows(text.partition("### shapes")[2])
    assert judged["ShapeBench color"][0].startswith("0.7500 (") and judged["ShapeBench color"][1:] != ["-", "-"]
    assert "clip-score, N = 10 (ShapeBench color 8, long 2): " in text and "0 prompts longer than the bridge" in text
    assert "fid: unavailable: inception" in text and "10 pictures of 10 prompts, seeds 1; unipc 50 steps" in text


def _rows(text: str) -> dict[str, list[str]]:
    """The first Markdown table in ``text``: first cell -> the others."""
    lines = text[text.index("|") :].partition("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first: others for first, *others in cells}


def test_a_value_outlives_its_weights(
    folder: Path, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    weights = write_weights(tmp_path / "w.toml", {"clip-b32": models["clip"]})
    score = ["evaluate", "score", str(folder), "--metrics", "clip-score"]
    assert main([*score, "--weights", str(weights)]) == 0
    before = json.loads((folder / "scores.json").read_text())["metrics"]["clip-score"]
    capsys.readouterr()
    assert main(score) == 0
    assert "clip-score: an earlier value is kept, now unavailable: clip-b32" in capsys.readouterr().out
    assert json.loads((folder / "scores.json").read_text())["metrics"]["clip-score"] == before
    assert main([*score, "--require"]) == 2
    assert main([*score, "--require", "--missing"]) == 0  # it has its value, and nothing is asked of the weights
    (folder / "scores.json").write_text("{}")
    assert main(["evaluate", "table", str(folder)]) == 2
    assert "is not what `evaluate score` writes" in capsys.readouterr().err


def test_bounds_are_those_of_whichever_run_has_the_category(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    runs = []
    for name in ("color", "single"):
        ((text, scene),) = prompts(name, 1, 3, VOCABULARIES["small"])
        run = write_run(tmp_path / name, [Prompt(text, f"ShapeBench {name}")], (1,), 128)
        run.pictures[0].path.write_bytes(png(render(scene, 128)))
        assert main(["evaluate", "score", str(run.folder), "--metrics", "shapes"]) == 0
        runs.append(str(run.folder))
    capsys.readouterr()
    assert main(["evaluate", "table", *runs]) == 0
    text = capsys.readouterr().out
    assert "The paper's table" not in text  # which has no row of these
    judged = _rows(text.partition("### shapes")[2])
    assert judged["ShapeBench color"][:2] == ["1.0000", "-"] and judged["ShapeBench single"][:2] == ["-", "1.0000"]
    assert all(float(cell) for name in ("color", "single") for cell in judged[f"ShapeBench {name}"][2:3])


def test_no_metric_asks_the_network(
    run: Run, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    roles = {"clip-b32": models["clip"], "blip-vqa": models["blip"], "detector": models["detr"]}
    weights = write_weights(tmp_path / "w.toml", roles)
    shutil.copytree(run.folder, tmp_path / "run")
    assert main(["evaluate", "score", str(tmp_path / "run"), "--weights", str(weights)]) == 0
    found = json.loads((tmp_path / "run" / "scores.json").read_text())["metrics"]
    assert {name for name, entry in found.items() if "value" in entry} >= {
        "clip-score",
        "blip-vqa",
        "spatial",
        "3-in-1",
    }


def test_require_fails_after_all_is_written(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["evaluate", "score", str(folder), "--metrics", "clip-score", "shapes", "--require"]) == 2
    assert "clip-score is unavailable: clip-b32" in capsys.readouterr().err
    assert json.loads((folder / "scores.json").read_text())["metrics"]["shapes"]["value"] == 0.75


def test_a_run_that_lacks_a_picture_is_not_scored(folder: Path, capsys: pytest.CaptureFixture) -> None:
    (folder / "samples" / "000003.png").unlink()
    assert main(["evaluate", "score", str(folder)]) == 2
    assert "lacks 1 of its 10 pictures (the first: 000003.png)" in capsys.readouterr().err


def test_scores_of_other_pictures_are_not_tabulated(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["evaluate", "score", str(folder), "--metrics", "shapes"]) == 0
    path = folder / "manifest.jsonl"
    path.write_text(path.read_text().replace("a dog", "a fox"))
    assert main(["evaluate", "table", str(folder)]) == 2
    assert "is of other pictures" in capsys.readouterr().err


def test_the_papers_tables_agree_where_they_share_a_row() -> None:
    language, vision, ablation = (PAPER[name].columns for name in ("language", "vision", "ablation"))
    assert language["T5-Large"] == vision["U-Net (SD)"] == ablation["T5+U-Net"]
    assert language["CLIP"] == ablation["CLIP+U-Net"]
    assert all(len(column) == len(ROWS) for table in PAPER.values() for column in table.columns.values())


def test_the_figures_are_in_the_slides_order() -> None:
    """A few by hand, one of each table and each kind of row."""
    names = [label for label, _, _ in ROWS]
    assert PAPER["language"].columns["Llama-2"][names.index("Comp - Color")] == "0.4859"
    assert PAPER["vision"].columns["Transformer (PixArt)"][names.index("Short - Aesthetics")] == "6.145"
    assert PAPER["ablation"].columns["w/o LoRA"][names.index("Comp - Complex")] == "0.2687"
    assert PAPER["ablation"].columns["SD"][names.index("Short - FID")] == "20.32"
