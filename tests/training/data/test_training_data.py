"""A run on tars, in buckets, mirrored and with pictures held out."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from lavi_bridge.training.loop.step import TrainStep
from lavi_bridge.training.loop.trainer import Trainer
from lavi_bridge.training.recipe import read_recipe
from PIL import Image

pytestmark = pytest.mark.usefixtures("on_cpu")

CAPTIONS = ["a red circle", "two green squares", "a blue triangle left of a circle", "a square", "three circles"]


def write_tars(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for k in range(2):
        with tarfile.open(folder / f"{k}.tar", "w") as archive:
            for i in range(8):
                picture = io.BytesIO()
                shape = (40, 40, 3) if i % 3 else (30, 90, 3)
                caption = f"{CAPTIONS[i % 3]}, {CAPTIONS[(i + k) % 5]}"
                Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(picture, "PNG")
                for name, data in ((f"{k}{i}.png", picture.getvalue()), (f"{k}{i}.txt", caption.encode())):
                    entry = tarfile.TarInfo(name)
                    entry.size = len(data)
                    archive.addfile(entry, io.BytesIO(data))


@pytest.mark.parametrize("language", ["lora", "frozen"])
def test_a_run_on_tars_resumes_to_the_bit(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, language: str
) -> None:
    write_tars(tmp_path)
    changes = ["data.kind=webdataset", f"data.path=pipe:cat {tmp_path}/{{0..1}}.tar", "data.resolution=32"]
    changes += ["data.buckets=true", "data.bucket_step=16", "data.bucket_ratio=3", "data.flip=true"]
    changes += ["data.validation=3", f"language.train={language}", "steps=8", "prompt.vision_mask=true"]
    whole = Trainer(read_recipe(recipe, [*changes, f"output={json.dumps(str(tmp_path / 'whole'))}"]))
    whole.run()
    sizes, names = set(), set()
    for step in range(60):
        batch = whole.latents.order(4, 0, whole.latents.split(3, 0)[0]).batch(step)
        sizes.add(tuple(whole.latents.batch(*batch)[0].shape[-2:]))
        names |= {whole.latents.name(i) for i in batch[0]}
    assert sizes == {(2, 6), (4, 4)} and len(names) == 13

    killed, step_of = Trainer(read_recipe(recipe, changes)), TrainStep.__call__

    def die(self, step, batch):
        if step == 5:
            raise KeyboardInterrupt
        return step_of(self, step, batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainStep, "__call__", die)
        killed.run()
    resumed = Trainer(read_recipe(recipe, changes), resume=True)
    assert 0 < resumed.step < 6
    resumed.run()
    assert all(torch.equal(p, resumed.trained[key]) for key, p in whole.trained.items())


def test_each_epoch_hears_another_line_of_a_caption_from_a_frozen_language_model(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, heard = tmp_path / "data", []
    folder.mkdir()
    for i in range(4):
        Image.new("RGB", (32, 32), (60 * i, 0, 0)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("a red circle\na blue square\ntwo green triangles\n")
    changes = ['data.kind="folder"', f"data.path={json.dumps(str(folder))}", 'data.caption_lines="any"']
    changes += ["language.train=frozen", "steps=6", "batch_size=4", "caption_dropout=0.0"]
    step_of = TrainStep.__call__
    monkeypatch.setattr(
        TrainStep, "__call__", lambda self, step, batch: heard.append(batch) or step_of(self, step, batch)
    )
    trainer = Trainer(read_recipe(recipe, changes))
    trainer.run()
    texts = [part.text for batch in heard for part in batch.micro_batches]
    said = [one[mask].sum(0) for text in texts for one, mask in zip(text.states, text.mask, strict=True)]
    kinds = {tuple(round(value, 2) for value in one.tolist()) for one in said}
    assert len(heard) == 6 and len(kinds) == 3
