"""Pictures of a run: whole after a kill, refused when a setting changed, the same in any batch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from lavi_bridge.training.commands import main
from lavi_bridge.training.evaluation.generate import QUALITY_SUFFIX, noise_of, seeds_of
from lavi_bridge.training.evaluation.run_folder import Run
from lavi_bridge.training.models.pipeline import Pipeline
from lavi_bridge.training.models.sampling import noise_for, sample
from lavi_bridge.training.models.vae import decode
from PIL import Image

TEXTS = ("a red circle", "../a blue/square", "a green cross")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.tsv"
    path.write_text("".join(f"{text}\tcolor\n" for text in TEXTS))
    return path


def generate(bridge: Path, tiny: Path, prompts: Path, run: Path, *more: str) -> int:
    models = ["--language-model", str(tiny / "text_encoder"), "--vision-model", str(tiny / "vision")]
    models += ["--vae", str(tiny / "vae.safetensors"), "--prompts", str(prompts), "-o", str(run)]
    return main(["evaluate", "generate", str(bridge), *models, "--steps", "3", *more])


def test_the_language_model_is_found_by_its_fingerprint(
    bridge: Path, tiny: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny / "text_encoder", tmp_path / "models" / "one")
    monkeypatch.setenv("LAVI_BRIDGE_LANGUAGE_MODELS", str(tmp_path / "models"))
    models = ["--vision-model", str(tiny / "vision"), "--vae", str(tiny / "vae.safetensors")]
    run = tmp_path / "run"
    command = ["evaluate", "generate", str(bridge), *models, "--prompts", str(prompts), "-o", str(run), "--steps", "1"]
    assert main([*command, "--seeds", "1"]) == 0 and len(files(run)) == 3


def files(run: Path) -> list[Path]:
    return sorted((run / "samples").iterdir())


def test_a_killed_run_goes_on(bridge: Path, tiny: Path, prompts: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert generate(bridge, tiny, prompts, run, "--seeds", "1", "2") == 0
    assert [path.name for path in files(run)] == [f"{i:06d}.png" for i in range(6)]
    whole = [path.read_bytes() for path in files(run)]
    assert len(set(whole)) == 6
    files(run)[2].write_bytes(whole[2][:-20])
    files(run)[1].unlink()
    part = run / "samples" / ".000003.png.99.part"
    part.write_bytes(b"half")  # a kill while it was written
    stamps = {path.name: path.stat().st_mtime_ns for path in files(run)}
    assert generate(bridge, tiny, prompts, run, "--seeds", "1", "2", "--batch-size", "1") == 0
    part.unlink()
    for path, before in zip(files(run), whole, strict=True):
        pixels = [np.asarray(Image.open(where)).astype(int) for where in (path, _file(tmp_path, before))]
        assert abs(pixels[0] - pixels[1]).max() <= 1  # of another batch
    drawn = [path.name for path in files(run) if path.stat().st_mtime_ns != stamps.get(path.name)]
    assert drawn == ["000001.png", "000002.png"]


def _file(folder: Path, data: bytes) -> Path:
    path = folder / "before.png"
    path.write_bytes(data)
    return path


def test_the_manifest_says_all(bridge: Path, tiny: Path, prompts: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert generate(bridge, tiny, prompts, run, "--seeds", "4..5", "--quality-suffix") == 0
    rows = [json.loads(line) for line in (run / "manifest.jsonl").read_text().splitlines()]
    assert [(row["id"], row["prompt"], row["seed"]) for row in rows] == [
        (3 * k + i, text, 4 + k) for k in range(2) for i, text in enumerate(TEXTS)
    ]
    settings = rows[0]["settings"]
    assert (settings["sampler"], settings["steps"], settings["guidance"]) == ("unipc", 3, 7.5)
    assert settings["suffix"] == QUALITY_SUFFIX and settings["size"] == 32  # sample_size 4 of the tiny vision model
    assert len({row["noise"] for row in rows}) == 6 and rows[4]["noise"] == noise_of(5, 1)


def test_a_changed_setting_is_refused_and_more_seeds_are_not(
    bridge: Path, tiny: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = tmp_path / "run"
    assert generate(bridge, tiny, prompts, run) == 0
    assert generate(bridge, tiny, prompts, run, "--guidance", "3") == 2
    assert "was begun with settings.guidance 7.5, now it is 3.0" in capsys.readouterr().err
    assert generate(bridge, tiny, prompts, run, "--seeds", "42", "43") == 0
    assert len(files(run)) == 6
    assert generate(bridge, tiny, prompts, run, "--seeds", "42") == 2  # of those that are there it would forget some
    assert "was begun with 6 pictures, now there are 3" in capsys.readouterr().err
    prompts.write_text(prompts.read_text().replace("green", "yellow"))
    assert generate(bridge, tiny, prompts, run, "--seeds", "42", "43") == 2
    assert "prompt 'a green cross', now it is 'a yellow cross'" in capsys.readouterr().err


def test_pictures_of_who_knows_what_are_not_taken(
    bridge: Path, tiny: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = tmp_path / "run"
    assert generate(bridge, tiny, prompts, run) == 0
    (run / "manifest.jsonl").unlink()
    assert generate(bridge, tiny, prompts, run) == 2
    assert "holds pictures without a manifest.jsonl" in capsys.readouterr().err


def test_a_prompt_longer_than_the_bridge_hears_is_told(
    bridge: Path, tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prompts, long = tmp_path / "p.txt", "a red circle and a blue square " * 3
    prompts.write_text(f"a red circle\n{long}\n")
    assert generate(bridge, tiny, prompts, tmp_path / "run") == 0
    assert f"1 of 2 prompts are longer than the bridge hears, and cut: {long.strip()!r}" in caplog.text
    rows = [json.loads(line) for line in (tmp_path / "run" / "manifest.jsonl").read_text().splitlines()]
    assert [row["cut"] for row in rows] == [0, 3 * 7 + 2 - 16]  # words and two ends, of which it hears 16
    assert [picture.cut for picture in Run.open(tmp_path / "run").pictures] == [0, 7]


def test_euler_draws_what_sample_draws_for_the_manifests_noise(
    bridge: Path, tiny: Path, prompts: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert generate(bridge, tiny, prompts, run, "--sampler", "euler", "--guidance", "3") == 0
    row = json.loads((run / "manifest.jsonl").read_text().splitlines()[2])
    pipeline = Pipeline.load(bridge, tiny / "text_encoder", tiny / "vision", tiny / "vae.safetensors")
    heard, unheard = pipeline.condition([row["prompt"]]), pipeline.condition([""])
    latents = sample(pipeline.vision, heard, unheard, noise_for(row["noise"], (1, 4, 4, 4)), 3, 3.0)
    expected = decode(pipeline.vae, latents)[0].numpy().astype(int)
    assert abs(np.asarray(Image.open(files(run)[2])).astype(int) - expected).max() <= 1


def test_an_unknown_sampler_and_bad_seeds_are_refused(
    bridge: Path, tiny: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert generate(bridge, tiny, prompts, tmp_path / "run", "--sampler", "ddim") == 2
    assert "unknown sampler 'ddim'; known: unipc, euler" in capsys.readouterr().err
    assert seeds_of(["7", "42..44"]) == [7, 42, 43, 44]
    for bad in (["1", "1"], ["a"], ["3..1"]):
        with pytest.raises(ValueError, match="--seeds"):
            seeds_of(bad)
