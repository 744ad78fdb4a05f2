"""Where the scale of latents is read, and what is said where it is nowhere."""

from __future__ import annotations

import json

import pytest
from lavi_bridge.lavi_core.vision import VISION_TARGETS, latent_scale


def pipeline(folder, unet, vae):
    for name, config in (("unet", unet), ("vae", vae)):
        if config is not None:
            (folder / name).mkdir()
            (folder / name / "config.json").write_text(json.dumps(config))
    return folder / "unet"


@pytest.mark.parametrize(
    ("unet", "vae", "row", "scale"),
    [
        ({"latent_scale": 2}, {"scaling_factor": 0.3}, "sdxl", 2.0),
        ({}, {"scaling_factor": 0.3}, "sdxl", 0.3),
        ({}, {"_class_name": "AutoencoderKL"}, "unet", 0.18215),
        ({}, {"_class_name": "VQModel"}, "sdxl", 0.13025),
        ({}, None, "sdxl", 0.13025),
    ],
)
def test_the_nearest_word_counts(tmp_path, unet, vae, row, scale):
    assert latent_scale(pipeline(tmp_path, unet, vae), VISION_TARGETS[row]) == scale


def test_latent_diffusion_names_its_vae_otherwise(tmp_path):
    folder = pipeline(tmp_path, {}, None)
    (tmp_path / "vqvae").mkdir()
    (tmp_path / "vqvae" / "config.json").write_text(json.dumps({"scaling_factor": 0.3}))
    assert latent_scale(folder, VISION_TARGETS["unet"]) == 0.3


@pytest.mark.parametrize("vae", [None, {"_class_name": "VQModel"}])
def test_nothing_is_assumed(tmp_path, vae):
    folder = pipeline(tmp_path, {"in_channels": 4}, vae)
    with pytest.raises(ValueError, match=r'add "latent_scale" to its config\.json') as caught:
        latent_scale(folder, VISION_TARGETS["unet"])
    assert str(folder) in str(caught.value)
