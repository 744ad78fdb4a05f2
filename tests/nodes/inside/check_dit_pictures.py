"""Newer DiTs: the host's sampler draws what the standalone one does, with the bridge's LoRA and without it."""

# pyright: reportMissingImports=false

from __future__ import annotations

import comfy.sample
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingFlux
from host_side import EXPECTED, MODELS, PROMPTS, check, connected, language_model, vision_, vision_model_

FAMILIES = tuple(
    sorted(name.removesuffix(".plain") for name in EXPECTED if name.startswith("dit-") and name.endswith(".plain"))
)
SIZE, STEPS, GUIDANCE = (8, 12), 3, 3.0
DYNAMIC = (
    "dit-flux",
    "dit-chroma",
    "dit-qwen-image",
)  # the shift of their schedulers depends on the size of the picture


def loaded(name):
    return vision_model_.load(MODELS / "diffusers" / name)


def shifted(name, model, pixels=8):
    """By the stock node, where the folder's scheduler shifts by the size of the picture."""
    if name not in DYNAMIC:
        return model
    height, width = (pixels * side for side in SIZE)
    return ModelSamplingFlux().patch(model, 1.15, 0.5, width, height)[0]


def drawn(model, bridge, shape):
    """Raw latents, from the noise of seed 7 over the whole batch."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(7))
    if model.get_model_object("latent_format").latent_dimensions == 3:
        noise = noise.unsqueeze(2)
    positive, negative = (bridge.encode(text)[0] for text in PROMPTS[:2])
    given = (model, noise, STEPS, GUIDANCE, "euler", "simple", positive, negative, torch.zeros_like(noise))
    found = comfy.sample.sample(*given, disable_pbar=True)
    return found if found.ndim == 4 else found.squeeze(2)


def gap(found, name):
    assert found.shape == EXPECTED[name].shape, (name, found.shape)
    return float((found.float() - EXPECTED[name]).abs().max() / EXPECTED[name].abs().max())


@check
def pictures_of_newer_models_are_those_of_the_standalone_sampler():
    assert len(FAMILIES) >= 11
    language, told = language_model("bert"), []
    for name in FAMILIES:
        try:
            bridge, model = connected(name, language), shifted(name, loaded(name))
            for what, strength in (("plain", 0.0), ("lora", 1.0)):
                patched = vision_.apply(model, bridge, strength)
                found = gap(drawn(patched, bridge, EXPECTED[f"{name}.{what}"].shape), f"{name}.{what}")
                if found > 1e-3:
                    told.append(f"{name}.{what}: {found:.3g}")
        except Exception as error:
            raise
            told.append(f"{name}: {error!r}")
    assert not told, told
