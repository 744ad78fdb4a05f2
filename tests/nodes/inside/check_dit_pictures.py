"""Newer DiTs: the host's sampler draws what the standalone one does, with the bridge's LoRA and without it."""

# pyright: reportMissingImports=false

from __future__ import annotations

import importlib
import json
import math

import comfy.model_management
import comfy.sample
import comfy.sd
import comfy.supported_models
import torch
from check_save import written
from comfy_extras.nodes_model_advanced import ModelSamplingFlux
from host_side import (
    EXPECTED,
    MODELS,
    PROMPTS,
    check,
    connected,
    language_model,
    refused,
    vision_,
    vision_model_,
    vision_targets,
)

core = importlib.import_module("hyphen-pack.lavi_core.checkpoint")
registry_ = importlib.import_module("hyphen-pack.nodes.vision_model.registry")

FAMILIES = sorted(name.removesuffix(".picture") for name in EXPECTED if name.endswith(".picture"))
SIZE, STEPS, GUIDANCE = (8, 12), 3, 3.0
DYNAMIC = ("dit-flux", "dit-chroma", "dit-qwen_image")  # whose schedulers shift by the size of the picture


def is_known(name):
    """Whether this host has a class for it."""
    config = json.loads((MODELS / "diffusers" / name / "transformer" / "config.json").read_text())
    row = importlib.import_module("hyphen-pack.lavi_core.vision").target_of(config)
    return registry_.HOST_MODELS[row.name].is_here


def loaded(name):
    return vision_model_.load(MODELS / "diffusers" / name)


def shifted(name, model):
    """By the stock node, where the shift grows with the picture: to most at 4096 tokens, 8 pixels a cell."""
    most, least = 1.15, 0.5
    if name.startswith("dit-flux2"):
        most = least = math.log(vision_targets()["flux2"].shift(SIZE[0] * SIZE[1]))
    elif name not in DYNAMIC:
        return model
    height, width = (8 * side for side in SIZE)
    return ModelSamplingFlux().patch(model, most, least, width, height)[0]


def drawn(model, bridge, shape, prompts=PROMPTS[:2]):
    """Raw latents, from the noise of seed 7 over the whole batch."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(7))
    if model.get_model_object("latent_format").latent_dimensions == 3:
        noise = noise.unsqueeze(2)
    positive, negative = (bridge.encode(text)[0] for text in prompts)
    given = (model, noise, STEPS, GUIDANCE, "euler", "simple", positive, negative, torch.zeros_like(noise))
    return comfy.sample.sample(*given, disable_pbar=True).reshape(shape)


def gap(found, name):
    return float((found.float() - EXPECTED[name]).abs().max() / EXPECTED[name].abs().max())


def gaps(name, model, bridge):
    """With the bridge's LoRA and without it."""
    found = {}
    for what, strength in (("picture", 0.0), ("picture.lora", 1.0)):
        patched = vision_.apply(model, bridge, strength)
        found[f"{name}.{what}"] = gap(drawn(patched, bridge, EXPECTED[f"{name}.{what}"].shape), f"{name}.{what}")
    comfy.model_management.unload_all_models()
    return found


@check
def pictures_of_newer_models_are_those_of_the_standalone_sampler():
    """Two pictures in a batch, prompts of different lengths, guided, not square; a LoRA on every site."""
    language, found = language_model("bert"), {}
    assert set(FAMILIES) == {folder.name for folder in (MODELS / "diffusers").glob("dit-*")}
    for name in filter(is_known, FAMILIES):
        model, bridge = shifted(name, loaded(name)), connected(name, language)
        found |= gaps(name, model, bridge)
        landed = sum(len(patches) for patches in vision_.apply(model, bridge, 1.0).patches.values())
        assert landed == len(vision_.deltas_of(bridge)) > 0
        other = drawn(model, bridge, EXPECTED[f"{name}.picture"].shape, (PROMPTS[1], PROMPTS[1]))
        assert gap(other, f"{name}.picture") > 1e-4, name  # the prompt is heard
    assert max(found.values()) < 1e-4, found


@check
def models_of_stock_loaders_take_bridges_to_newer_ones():
    """Of sizes that the host's own detection finds."""
    wide = hasattr(comfy.supported_models, "Anima")  # the newest host alone reads Flux's widths
    for name in ("dit-sd3", *(("dit-flux", "dit-flux-schnell") if wide else ())):
        file = MODELS / "diffusers" / name / "transformer" / "diffusion_pytorch_model.safetensors"
        model = comfy.sd.load_diffusion_model(str(file), model_options={"dtype": torch.float32})
        found = gaps(name, shifted(name, model), connected(name, language_model("bert")))
        assert max(found.values()) < 1e-4, found


@check
def a_model_that_this_comfyui_does_not_know_is_told_so():
    language, sd3 = language_model("bert"), loaded("dit-sd3")
    for name in (name for name in FAMILIES if not is_known(name)):
        words = ["this ComfyUI has no class yet", "it needs a newer ComfyUI"]
        refused(words, loaded, name)
        refused([name, *words], vision_.apply, sd3, connected(name, language), 1.0)


@check
def a_bridge_to_another_of_the_newer_models_is_refused():
    language = language_model("bert")
    pairs = [("dit-sd3", "dit-flux"), ("dit-flux", "dit-sd3"), ("dit-chroma", "dit-flux"), ("dit-flux", "dit-chroma")]
    pairs += [("dit-wan", "dit-cosmos"), ("dit-lumina2", "dit-aura_flow"), ("dit-qwen_image", "dit-lumina2")]
    for made_for, given in pairs:
        refused([made_for, f"load {made_for}"], vision_.apply, loaded(given), connected(made_for, language), 1.0)


@check
def a_lora_of_fused_matrices_is_saved_as_its_parts():
    """Lumina 2's queries, keys and values are one matrix in the host; the file has them as trained."""
    name, language = "dit-lumina2", language_model("bert")
    bridge, model = connected(name, language), loaded("dit-lumina2")
    file = written(bridge, vision_.apply(model, bridge, 0.5), "saved-dit")
    try:
        again = core.BridgeCheckpoint.load(file)
        assert again.vision_lora.keys() == bridge.vision_lora.keys()
        for path, delta in again.vision_lora.items():
            was = bridge.vision_lora[path]
            assert delta.down.shape == was.down.shape
            torch.testing.assert_close(delta.scale * delta.up @ delta.down, 0.5 * was.scale * was.up @ was.down)
    finally:
        file.unlink()


@check
def a_prompt_that_is_too_long_for_the_vision_model_is_refused():
    bridge = connected("dit-aura_flow", language_model("bert"))
    options = importlib.import_module("hyphen-pack.nodes.prompt_syntax").PromptOptions(long_prompts="chunk")
    words = ["hears at most 256: shorten the prompt, or cut it"]
    refused(words, bridge.encode, "two elephants in the forest " * 80, options)
