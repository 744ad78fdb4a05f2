"""A trainer that is killed at any moment and resumed ends as the one that was never killed, to the bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from lavi_bridge.lavi_core.files import read_safetensors, write_safetensors
from lavi_bridge.training.loop.stopping import StopSignals
from lavi_bridge.training.loop.trainer import Trainer
from lavi_bridge.training.recipe import read_recipe

pytestmark = pytest.mark.usefixtures("on_cpu")

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}


def start(recipe: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "lavi_bridge.training", str(recipe), *arguments]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def journal(output: Path) -> list[tuple[int, float, float]]:
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["norm"]) for line in lines if "loss" in line]


def kill_at(process: subprocess.Popen, output: Path, step: int) -> None:
    """SIGKILL as soon as the run has a state of at least ``step`` steps."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        states = [int(p.name.split("-")[1]) for p in (output / "state").glob("step-*")]
        if any(found >= step for found in states) or process.poll() is not None:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def _tensors(path: Path) -> bytes:
    data = path.read_bytes()
    return data[8 + int.from_bytes(data[:8], "little") :]


def test_bf16_with_alignment_accumulation_and_pictures_resumes_to_the_bit(
    recipe: Path, tiny: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer, BertConfig, BertModel

    teacher = tmp_path / "teacher"
    BertModel(BertConfig.from_pretrained(tiny / "text_encoder", hidden_size=24)).save_pretrained(teacher)
    AutoTokenizer.from_pretrained(tiny / "text_encoder").save_pretrained(teacher)
    changes = ["precision=bf16", "accumulation=2", "align.steps=3", "align.batch_size=4", "steps=8", "save_every=1"]
    changes += [f"align.teacher={json.dumps(str(teacher))}"]
    changes += ["sample.every=2", "sample.bench=1", "sample.steps=2", "data.mix.single=1"]
    whole = Trainer(read_recipe(recipe, [*changes, f"output={json.dumps(str(tmp_path / 'whole'))}"])).run()
    kill_at(start(recipe, *(text for change in changes for text in ("--set", change))), tmp_path / "run", 1)
    assert not (tmp_path / "run" / "state" / "step-0000008").exists(), "the run ended before it could be killed"
    resumed = Trainer(read_recipe(recipe, changes), resume=True).run()
    assert journal(resumed.parent) == journal(whole.parent)
    assert _tensors(resumed) == _tensors(whole)


def test_a_run_killed_before_its_first_step_aligns_once_and_one_before_its_first_state_starts_afresh(
    recipe: Path, tmp_path: Path
) -> None:
    whole = Trainer(read_recipe(recipe, [f"output={json.dumps(str(tmp_path / 'whole'))}"])).run()
    killed = Trainer(read_recipe(recipe))  # has written recipe.json
    assert not (tmp_path / "run" / "state").exists()
    killed = Trainer(read_recipe(recipe), resume=True)
    killed.save_state()
    assert (tmp_path / "run" / "state" / "step-0000000").is_dir()
    resumed = Trainer(read_recipe(recipe), resume=True)
    assert resumed.resumed and resumed.step == 0 and not killed.resumed
    assert _tensors(resumed.run()) == _tensors(whole)


def test_a_kill_between_the_last_state_and_its_bridge_costs_neither_bridge_nor_pictures(
    recipe: Path, tmp_path: Path
) -> None:
    changes = ["steps=2", "save_every=1", "ema=0.9", "sample.every=2", "sample.bench=1", "sample.steps=2"]
    changes += ["data.mix.single=1", 'sample.prompts=["a red circle"]']
    whole = Trainer(read_recipe(recipe, [*changes, f"output={json.dumps(str(tmp_path / 'whole'))}"])).run()
    Trainer(read_recipe(recipe, [*changes, "steps=1"])).run()
    earlier = (tmp_path / "run" / "bridge.safetensors").read_bytes()
    Trainer(read_recipe(recipe, changes), resume=True).run()
    # as the kill leaves it: the state and the log of the last step, the bridge of the one before, no pictures
    (tmp_path / "run" / "bridge.safetensors").write_bytes(earlier)
    drawn = sorted((tmp_path / "run" / "samples").glob("step-0000002.*"))
    pictures = [path.read_bytes() for path in drawn]
    for path in drawn:
        path.unlink()
    log = tmp_path / "run" / "log.jsonl"
    log.write_text("".join(line for line in log.read_text().splitlines(True) if "bench" not in line))
    resumed = Trainer(read_recipe(recipe, changes), resume=True).run()
    assert _tensors(resumed) == _tensors(whole) != earlier[8 + int.from_bytes(earlier[:8], "little") :]
    assert [path.read_bytes() for path in drawn] == pictures and len(pictures) == 2
    assert "bench" in log.read_text().splitlines()[-1]
    stamp = drawn[0].stat().st_mtime_ns
    Trainer(read_recipe(recipe, changes), resume=True).run()
    assert drawn[0].stat().st_mtime_ns == stamp and log.read_text().count("bench") == 1


@pytest.mark.parametrize("at", [1, 2])
def test_what_a_stop_leaves_out_is_made_up_for(
    at: int, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is asked to stop neither validates nor draws, at its last step too."""
    changes = ["steps=2", "validation.every=1", "data.validation=4", "sample.every=1", "sample.bench=1"]
    changes += ["sample.steps=2", "data.mix.single=1"]
    whole = Trainer(read_recipe(recipe, [*changes, f"output={json.dumps(str(tmp_path / 'whole'))}"])).run()
    with monkeypatch.context() as patched:
        patched.setattr(StopSignals, "agreed", lambda *_: signal.SIGTERM if trainer.step == at else 0)
        trainer = Trainer(read_recipe(recipe, changes))
        with pytest.raises(SystemExit):
            trainer.run()
    assert told(tmp_path / "run") == told(whole.parent)[: 3 * at - 2]
    assert _tensors(Trainer(read_recipe(recipe, changes), resume=True).run()) == _tensors(whole)
    assert told(tmp_path / "run") == told(whole.parent) and len(told(whole.parent)) == 6
    Trainer(read_recipe(recipe, changes), resume=True).run()
    assert told(tmp_path / "run") == told(whole.parent)


def told(output: Path) -> list[tuple[int, str, Any]]:
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [(line["step"], key, line[key]) for line in lines for key in ("loss", "validation", "bench") if key in line]


def test_a_second_run_into_the_same_folder_is_refused(recipe: Path) -> None:
    Trainer(read_recipe(recipe, ["steps=2"])).run()
    with pytest.raises(ValueError, match="--resume"):
        Trainer(read_recipe(recipe))


def test_resuming_nothing_is_refused(recipe: Path) -> None:
    with pytest.raises(ValueError, match="nothing to resume"):
        Trainer(read_recipe(recipe), resume=True)


def test_resuming_another_run_is_refused(recipe: Path, tmp_path: Path) -> None:
    Trainer(read_recipe(recipe, ["steps=2"])).run()
    for change, message in (("vision.rank=3", "vision.rank is 2 there and 3 here"), ("seed=1", "seed is 0 there")):
        with pytest.raises(ValueError, match=f"does not fit this recipe: {message}"):
            Trainer(read_recipe(recipe, [change]), resume=True)
    assert Trainer(read_recipe(recipe, ["steps=3", "keep=1"]), resume=True).step == 2
    assert len(json.loads((tmp_path / "run" / "environment.json").read_text())) == 2
    facts = tmp_path / "run" / "state" / "step-0000002" / "state.json"
    facts.write_text(json.dumps({"step": 2}))  # as states were written before
    assert Trainer(read_recipe(recipe, ["seed=1"]), resume=True).step == 2
    with pytest.raises(ValueError, match="does not fit this recipe"):
        Trainer(read_recipe(recipe, ["vision.rank=3"]), resume=True)


def test_a_cut_state_is_named(recipe: Path, tmp_path: Path) -> None:
    Trainer(read_recipe(recipe, ["steps=2"])).run()
    weights = tmp_path / "run" / "state" / "step-0000002" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    whole = "step-0000000"
    with pytest.raises(
        ValueError, match=rf"step-0000002 is damaged .*; delete that folder and go on from {whole}, the"
    ):
        Trainer(read_recipe(recipe), resume=True)
    shutil.rmtree(weights.parent)
    assert Trainer(read_recipe(recipe), resume=True).step == 0


def test_what_is_left_and_a_rate_that_rises_again_are_told_of(recipe: Path, caplog: pytest.LogCaptureFixture) -> None:
    def told(*changes: str, resume: bool = True) -> str:
        caplog.clear()
        Trainer(read_recipe(recipe, [*changes, 'optimizer.schedule="cosine"']), resume=resume).run()
        return caplog.text

    told("steps=2", resume=False)
    assert "nothing is left to train: the run has 2 of 2 steps" in told("steps=2")
    text = told("steps=4")
    assert (
        "with 4 steps for 2 the cosine schedule goes on at 0.50 of the learning rate, where it had come to 0.00" in text
    )
    assert "nothing is left" not in text


def test_resuming_with_a_language_model_that_was_changed_is_refused(recipe: Path, tiny: Path, tmp_path: Path) -> None:
    """Which its fingerprint of signs does not see."""
    folder = tmp_path / "language"
    shutil.copytree(tiny / "text_encoder", folder)
    changes = [f"language.model={json.dumps(str(folder))}", "steps=2"]
    Trainer(read_recipe(recipe, changes)).run()
    weights = read_safetensors(folder / "model.safetensors")
    scaled = {key: t * 1.3 if "LayerNorm.weight" in key else t for key, t in weights.items()}
    write_safetensors(folder / "model.safetensors", scaled, {"format": "pt"})
    with pytest.raises(ValueError, match=r"does not fit this recipe: language\.facts\.weights is"):
        Trainer(read_recipe(recipe, changes), resume=True)


def test_what_was_moved_goes_on_and_what_was_edited_is_told_of(
    recipe: Path, tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of models and data; another data set under another path is refused."""
    from PIL import Image

    first, second, other = (tmp_path / name for name in ("first", "second", "other"))
    for folder, brightness in ((first / "data", 90), (other / "data", 200)):
        folder.mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (32, 32), (brightness, 10 * i, 0)).save(folder / f"{i}.png")
            (folder / f"{i}.txt").write_text(f"picture {i} of {folder.parent.name}")
    shutil.copytree(tiny, first / "models")

    def trained(place: Path, steps: int, resume: bool = True, models: Path | None = None) -> str:
        caplog.clear()
        models = models or place / "models"
        whole = tomllib.loads(recipe.read_text())
        changes = [f"steps={steps}", 'data.kind="folder"', f"data.path={json.dumps(str(place / 'data'))}"]
        for key in ("language.model", "vision.model", "vision.vae"):
            table, name = key.split(".")
            changes.append(f"{key}={json.dumps(whole[table][name].replace(str(tiny), str(models)))}")
        Trainer(read_recipe(recipe, [*changes, f'name="{place.name}"']), resume=resume).run()
        return caplog.text

    trained(first, 1, resume=False)
    first.rename(second)
    assert "edited" not in trained(second, 2)
    (second / "data" / "0.txt").write_text("a picture that was named again")
    assert "no longer what they were up to step 2" in trained(second, 3) and "edited" not in trained(second, 4)
    Image.new("RGB", (48, 32), (1, 2, 3)).save(second / "data" / "1.png")
    assert "no longer what they were up to step 4" in trained(second, 5)
    with pytest.raises(ValueError, match=r"does not fit this recipe: data\.path is .* here, where something else lies"):
        trained(other, 6, models=second / "models")
    shutil.copytree(second / "models", tmp_path / "rescheduled")  # its weights are the same
    config = next((tmp_path / "rescheduled").rglob("scheduler_config.json"))
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prediction_type": "v_prediction"}))
    with pytest.raises(ValueError, match=r"vision\.model is .* here, where something else lies"):
        trained(second, 6, models=tmp_path / "rescheduled")
    shutil.copytree(second / "models", tmp_path / "scaled")
    (vae,) = (tmp_path / "scaled").glob("vae*.safetensors")
    write_safetensors(vae, {key: 1.7 * value for key, value in read_safetensors(vae).items()})
    with pytest.raises(ValueError, match=r"vision\.vae is .* here, where something else lies"):
        trained(second, 6, models=tmp_path / "scaled")


def test_other_pictures_than_before_are_told_of(recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is said where they are the same; a picture that came, and a run of before they were recorded, are."""
    from PIL import Image

    def picture(name: str) -> None:
        Image.new("RGB", (32, 32), (9, len(name), 200)).save(tmp_path / "data" / f"{name}.png")
        (tmp_path / "data" / f"{name}.txt").write_text(f"picture {name}")

    (tmp_path / "data").mkdir()
    for i in range(8):
        picture(f"{i}" * (i + 1))
    data = ['data.kind="folder"', f"data.path={json.dumps(str(tmp_path / 'data'))}", "data.validation=3"]
    Trainer(read_recipe(recipe, [*data, "steps=1"])).run()

    def told(steps: int) -> list[str]:
        caplog.clear()
        Trainer(read_recipe(recipe, [*data, f"steps={steps}"]), resume=True).run()
        return [line.getMessage() for line in caplog.records if "held out" in line.getMessage()]

    assert not told(2)
    picture("new")
    (line,) = told(2)
    assert "up to step 2 this run trained on 5 pictures and held out 3; now it is 6 and 3" in line
    (tmp_path / "data" / "new.png").rename(tmp_path / "aside.png")
    assert not told(2)  # as before, since no step was trained with it
    (tmp_path / "aside.png").rename(tmp_path / "data" / "new.png")
    assert len(told(3)) == 1 and not told(4)
    state = tmp_path / "run" / "state" / "step-0000004" / "state.json"
    facts = json.loads(state.read_text())
    del facts["split"]  # as states were written before
    state.write_text(json.dumps(facts))
    (line,) = told(5)
    assert "up to step 4 this run did not record which pictures it held out" in line
