"""The demo's VAE: it trains, and its file gives the same network back."""

from __future__ import annotations

from pathlib import Path

import torch
from lavi_bridge.lavi_core.files import write_safetensors
from lavi_bridge.training.demo.autoencoder import AutoencoderRecipe, taesd_state, train
from lavi_bridge.training.models.vae import decode, encode, load_vae

RECIPE = AutoencoderRecipe(
    output="",
    vocabulary="small",
    seed=1,
    steps=2,
    batch_size=2,
    crop=64,
    learning_rate=1e-4,
    latent_noise=0.05,
    latent_penalty=0.001,
)


def test_training_and_the_way_to_a_file_and_back(tmp_path: Path) -> None:
    model, latent_scale = train(RECIPE)
    assert 0 < latent_scale < float("inf")
    write_safetensors(tmp_path / "vae.safetensors", taesd_state(model))
    again = load_vae(tmp_path / "vae.safetensors")
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = encode(model, images)
    assert latents.shape == (2, 4, 8, 8) and torch.equal(encode(again, images), latents)
    assert torch.equal(decode(again, latents), decode(model, latents))
