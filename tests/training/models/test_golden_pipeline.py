"""The standalone pipeline on the golden cases: the noise that the authors' code predicts, from a prompt's words on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lavi_bridge.tests.training.paper import SCALED_LINEAR, write_vae
from lavi_bridge.training.commands import main
from lavi_bridge.training.models.pipeline import Pipeline
from safetensors.torch import load_file

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.mark.parametrize("case", sorted(file.parent.name for file in GOLDEN.glob("*/case.json")))
def test_the_pipeline_predicts_the_authors_noise(case: str, tmp_path: Path) -> None:
    from diffusers import DDIMScheduler

    folder, vision = GOLDEN / case, tmp_path / "vision"
    vision.mkdir()
    part = (
        "transformer" if "caption_channels" in json.loads((folder / "vision" / "config.json").read_text()) else "unet"
    )
    (vision / part).symlink_to(folder / "vision")
    DDIMScheduler(**SCALED_LINEAR).save_pretrained(vision / "scheduler")  # pyright: ignore[reportArgumentType]
    write_vae(vision / "vae")
    models = ["--language-model", str(folder / "text_encoder"), "--vision-model", str(vision)]
    bridge = tmp_path / "bridge.safetensors"
    assert main(["import", str(folder / "released"), *models, "-o", str(bridge)]) == 0

    pipeline = Pipeline.load(bridge, folder / "text_encoder", vision, vision / "vae", device="cpu")
    expected = load_file(folder / "expected.safetensors")
    heard = pipeline.condition(json.loads((folder / "case.json").read_text())["prompts"])
    with torch.no_grad():
        found = pipeline.vision.predict(expected["latents"], expected["timesteps"], heard)
    assert (found - expected["noise_pred"]).norm() < 1e-4 * expected["noise_pred"].norm()
