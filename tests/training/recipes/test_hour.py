"""The recipes of an hour, whose minutes are computed: each trains by itself, from captions to pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lavi_bridge.lavi_core.checkpoint import BridgeCheckpoint
from lavi_bridge.tests.training.paper import (
    POOLED,
    RECIPES,
    SDXL,
    write_clip,
    write_data,
    write_languages,
    write_two_clips,
    write_unet,
)
from lavi_bridge.training.loop.trainer import Trainer
from lavi_bridge.training.recipe import read_recipe

pytestmark = pytest.mark.usefixtures("on_cpu")

SMALL = ["batch_size=2", "steps=4", "data.resolution=32", "align.batch_size=4", "align.steps=3"]
SMALL += ["align.prediction_steps=2", "sample.every=4", "sample.steps=2", "trackers=[]", "optimizer.warmup=0"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the recipes name, tiny, the vision models with the text encoders that they were trained with."""
    folder = tmp_path_factory.mktemp("hour")
    write_languages(folder / "models")
    write_unet(folder / "models" / "stable-diffusion-v1-4", cross_attention_dim=24)
    write_clip(folder / "models" / "stable-diffusion-v1-4" / "text_encoder")
    write_unet(folder / "models" / "stable-diffusion-xl-base-1.0", cross_attention_dim=40, **SDXL)
    write_two_clips(folder / "models" / "stable-diffusion-xl-base-1.0")
    write_data(folder / "data")
    (folder / "data" / "coco2017.tsv").rename(folder / "data" / "pictures.tsv")
    return folder


@pytest.mark.parametrize("pair", sorted(path.stem for path in RECIPES.glob("*-hour.toml")))
def test_an_hours_recipe_trains(pair: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(models)
    recipe = read_recipe(RECIPES / f"{pair}.toml", [*SMALL, f"output={json.dumps(str(tmp_path / pair))}"])
    bridge = BridgeCheckpoint.load(Trainer(recipe).run())
    lines = [json.loads(line) for line in (tmp_path / pair / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert lines[0]["start_seconds"] > 0
    assert bridge.config.adapter.kind == "refiner"
    assert bridge.config.adapter.pooled_width == (POOLED if "sdxl" in pair else None)
    assert (tmp_path / pair / "samples").is_dir()
