"""Vision models in the host: numbers, patches, memory management, latents."""

# pyright: reportMissingImports=false

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import comfy.lora
import comfy.model_detection
import comfy.model_management
import comfy.sample
import comfy.sd
import torch
from host_side import (
    BASE,
    EXPECTED,
    MODELS,
    check,
    close,
    connected,
    context,
    language_model,
    partly,
    refused,
    same_bits,
    scheduler_,
    vision_,
    vision_model_,
    vision_targets,
    weights,
)

# What our own loader builds.
FOLDERS = (
    "flow",
    "velocity",
    "sized",
    "ldm",
    "sd1",
    "pixart",
    "small-pixart",
    "told-pixart",
)  # what our own loader builds


def ours(name):
    return vision_model_.load(MODELS / "diffusers" / f"tiny-{name}")


def stocks(name):
    """The same weights as the host's own loaders take them."""
    if name == "pixart":
        return comfy.sd.load_diffusion_model(str(MODELS / "diffusion_models" / "tiny-pixart.safetensors"))
    path = str(MODELS / "checkpoints" / f"tiny-{name}.safetensors")
    return comfy.sd.load_checkpoint_guess_config(path, output_vae=False, output_clip=False)[0]


def bridge_to(name):
    return connected(name, language_model("bert"))


def forward(patcher, name):
    """The network at the expected inputs, told a picture's sizes where it asks for them, by the host's own rule."""
    x, t, c = (EXPECTED[f"{name}.{part}"] for part in "xtc")
    told = {}
    if f"{name}.pooled" in EXPECTED:
        height, width = (8 * side for side in x.shape[2:])
        adm = {"pooled_output": EXPECTED[f"{name}.pooled"], "width": width, "height": height, "device": x.device}
        told["y"] = patcher.model.encode_adm(**adm)
    return patcher.model.diffusion_model(x, t, context=c, **told)


def scale_of(patcher):
    return patcher.get_model_object("latent_format").scale_factor


def takes_the_whole_lora(model, name):
    """Numbers as diffusers' without the bridge's LoRA and with it; as many patches as it has sites."""
    bridge = bridge_to(name)
    close(forward(model, name), f"{name}.plain", 1e-4)
    patched = vision_.apply(model, bridge, 1.0)
    assert sum(len(patches) for patches in patched.patches.values()) == len(bridge.vision_lora) > 0
    assert (EXPECTED[f"{name}.lora"] - EXPECTED[f"{name}.plain"]).abs().max() > 1e-2
    comfy.model_management.load_models_gpu([patched], force_full_load=True)
    close(forward(patched, name), f"{name}.lora", 1e-4)
    comfy.model_management.unload_all_models()


@check
def folders_compute_what_diffusers_does_and_take_the_whole_lora():
    for name in FOLDERS:
        takes_the_whole_lora(ours(name), name)


@check
def models_of_stock_loaders_take_the_whole_lora():
    """Attention, GEGLU, convolutions and time embeddings, as the host's own detection names them."""
    for name, kind in (("sd1", "BaseModel"), ("sdxl", "SDXL"), ("pixart", "PixArt")):
        model = stocks(name)
        assert type(model.model).__name__ == kind
        takes_the_whole_lora(model, name)


@check
def schedules_are_those_of_diffusers():
    scheduler = json.loads((MODELS / "diffusers" / "tiny-velocity" / "scheduler" / "scheduler_config.json").read_text())
    model = ours("velocity").model
    betas = torch.linspace(scheduler["beta_start"] ** 0.5, scheduler["beta_end"] ** 0.5, 1000, dtype=torch.float64) ** 2
    alphas = (1 - betas).cumprod(0)
    torch.testing.assert_close(model.model_sampling.sigmas, ((1 - alphas) / alphas).sqrt().float())
    kind, settings = scheduler_.sampling({"_class_name": "DDPMScheduler", "rescale_betas_zero_snr": True})
    assert (kind.name, settings["beta_schedule"], settings["zsnr"]) == ("EPS", "sqrt_linear", True)


@check
def the_vision_lora_survives_a_partial_load_and_leaves_no_trace():
    for name in ("flow", "ldm", "small-pixart"):
        model, bridge = ours(name), bridge_to(name)
        before = weights(model.model)
        patched = vision_.apply(model, bridge, 1.0)
        partly(patched)
        close(forward(patched, name), f"{name}.lora", 1e-4)
        comfy.model_management.unload_all_models()
        comfy.model_management.load_models_gpu([model])
        assert same_bits(before, weights(model.model))
        close(forward(model, name), f"{name}.plain", 1e-4)
        assert vision_.apply(model, bridge, 0.0) is model


@check
def a_model_has_the_latents_of_its_folder():
    """Of its config, its pipeline's VAE, or its row: latent diffusion calls its VAE vqvae."""
    scales = {"flow": 0.5, "ldm": 0.18215, "sd1": 0.18215, "pixart": 0.18215}
    for name, scale in scales.items():
        assert abs(scale_of(ours(name)) - scale) < 1e-6, name


@check
def pixart_at_512_gets_its_own_latents():
    """The host takes it for PixArt-Sigma; the scale that the bridge recorded decides, whatever the LoRA's strength."""
    alpha = bridge_to("pixart")
    trained = alpha.config.vision
    sigma = replace(alpha, config=replace(alpha.config, vision=replace(trained, latent_scale=0.13025)))
    mistaken, right = stocks("pixart"), ours("pixart")
    assert abs(scale_of(mistaken) - 0.13025) < 1e-6 and abs(scale_of(right) - 0.18215) < 1e-6
    for model in (mistaken, right):
        for strength in (1.0, 0.0):
            assert abs(scale_of(vision_.apply(model, alpha, strength)) - 0.18215) < 1e-6
            assert abs(scale_of(vision_.apply(model, sigma, strength)) - 0.13025) < 1e-6
    assert abs(scale_of(mistaken) - 0.13025) < 1e-6 and abs(scale_of(right) - 0.18215) < 1e-6
    assert vision_.apply(mistaken, sigma, 0.0) is mistaken and vision_.apply(right, alpha, 0.0) is right


@check
def a_picture_of_no_whole_patches_is_refused_by_pixart():
    model, bridge = ours("small-pixart"), connected("small-pixart", language_model("bert"))
    heard = bridge.encode("sea")[0]
    noise = torch.zeros(1, 4, 9, 16)
    words = ["9 x 16", "multiples of 16 pixels"]
    refused(words, comfy.sample.sample, model, noise, 1, 1.0, "euler", "simple", heard, heard, noise)


@check
def masked_tokens_are_dropped_and_padding_is_kept_as_trained():
    for name in ("pixart", "sd1", "sdxl"):
        bridge = bridge_to(name)
        tokens = [
            bridge.clip.tokenize(text)["lavi_bridge"][0].tokens for text in ("a red circle left of a blue square", "")
        ]
        real, padded = [int(t.mask.sum()) for t in tokens], [t.mask.shape[1] for t in tokens]
        assert real[0] > real[1] and padded[0] == padded[1] > real[0]
        assert [context(bridge, i).shape[1] for i in range(2)] == (real if name == "pixart" else padded), name


@check
def the_pooled_vector_of_sdxl_reaches_the_conditioning():
    conditioning, _ = bridge_to("sdxl").encode("a red circle")
    assert conditioning[0][1]["pooled_output"].shape == (1, 1280)


@check
def every_site_of_the_real_sizes_is_known_to_the_host():
    """The authors adapt 224 sites of Stable Diffusion 1.4 and of PixArt; a lost one would be another model."""
    detection = comfy.model_detection
    for kind, (sites, shapes) in json.loads((Path(BASE) / "sites.json").read_text()).items():
        state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        transformer = detection.convert_diffusers_mmdit(state, "")
        if transformer is None:
            config = detection.model_config_from_diffusers_unet(state)
        else:
            config = detection.model_config_from_unet(transformer, "")
        config.set_inference_dtype(torch.float32, None)
        model = config.get_model({}, "", device=torch.device("meta"))
        host_keys = comfy.lora.model_lora_keys_unet(model, {})
        target = vision_targets()[kind]
        lost = [site for site in sites if target.keys.stem(site) not in host_keys]
        assert not lost, (kind, lost)
        weights_there = model.state_dict()
        for site in sites:
            key = host_keys[target.keys.stem(site)]
            name, (dim, _, length) = key if isinstance(key, tuple) else (key, (0, 0, shapes[f"{site}.weight"][0]))
            there = list(weights_there[name].shape)
            assert [*there[:dim], length, *there[dim + 1 :]] == shapes[f"{site}.weight"], site
        assert len(sites) == {"sd1": 224, "pixart": 224, "sdxl": 692}[kind], (kind, len(sites))
