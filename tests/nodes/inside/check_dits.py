"""Diffusion transformers in the host: folders of diffusers predict what diffusers' networks do."""

# pyright: reportMissingImports=false

from __future__ import annotations

import importlib
import json

import comfy.model_management
import comfy.supported_models
import torch
from host_side import EXPECTED, MODELS, check, refused, vision_model_

Conditioning = importlib.import_module("hyphen-pack.lavi_core.conditioning").Conditioning
target_of = importlib.import_module("hyphen-pack.lavi_core.vision").target_of

LEVELS = (0.8, 0.35)
CPU = torch.device("cpu")


def folder_of(name):
    return MODELS / "diffusers" / f"dit-{name}"


def config_of(name):
    return json.loads((folder_of(name) / "transformer" / "config.json").read_text())


def ours(name):
    return vision_model_.load(folder_of(name))


def conditions(row, name, alone):
    """What a conditioning must have for the host to hear what the row says: no token that is to be left out."""
    given = {key: EXPECTED[f"dit-{name}.{key}"] for key in ("context", "mask", "pooled")}
    context, mask = given["context"], None if row.text.masked == "refused" else given["mask"]
    if alone:
        context, mask = context[:, :9], None
    heard = row.text.hear(Conditioning(context, mask, None))
    assert heard.mask is None or row.text.masked in ("left_out", "masked")
    count = heard.context.shape[1] if heard.mask is None else int(heard.mask.sum())
    found = {"cross_attn": heard.context[:, :count], "pooled_output": given["pooled"] if row.pooled_key else None}
    if row.name == "lumina2":  # older hosts count its tokens by a mask, and have a KeyError for that of a Flux
        found["attention_mask"] = torch.ones(1, count, dtype=torch.long)
    if row.embedded_guidance != 1:
        found["guidance"] = row.embedded_guidance
    return found


def predicted(patcher, x, share, found):
    """The network's prediction, of noise - data, out of what the host's sampler gets: the denoised latents."""
    comfy.model_management.load_models_gpu([patcher], force_full_load=True)
    model, shape = patcher.model, x.shape
    if model.latent_format.latent_dimensions == 3:
        x = x.unsqueeze(2)
    if model.model_type.name == "EPS":
        return model.diffusion_model(x, torch.tensor([1000 * share]), context=found["cross_attn"])[:, : shape[1]]
    ratio = model.model_type.name == "FLOW_COSMOS"  # noise to data, in latents that are not shrunk by it
    given, sigma = (x / (1 - share), share / (1 - share)) if ratio else (x, share)
    extra = model.extra_conds(**found, noise=given, device=CPU, latent_shapes=None)
    ready = {key: cond.process_cond(batch_size=1, device=CPU, area=None).cond for key, cond in extra.items()}
    denoised = model.apply_model(given, torch.tensor([sigma]), transformer_options={}, **ready)
    return ((x - denoised) / share).reshape(shape)


def agrees(name):
    """At two levels of noise, with padding behind the prompt and without; relative to the largest number."""
    row, patcher, x, gaps = target_of(config_of(name)), ours(name), EXPECTED[f"dit-{name}.x"], {}
    for level in LEVELS:
        for end in ("", ".alone"):
            right = EXPECTED[f"dit-{name}.{level}{end}"][:, : x.shape[1]]
            found = predicted(patcher, x, level, conditions(row, name, bool(end)))
            gaps[f"{level}{end}"] = ((found - right).abs().max() / right.abs().max()).item()
    comfy.model_management.unload_all_models()
    assert max(gaps.values()) < 1e-5, (name, gaps)


def agrees_where_known(stock, name):
    """Or, where the host has no class of this name, is refused with the way out."""
    if hasattr(comfy.supported_models, stock):
        agrees(name)
    else:
        refused([f"dit-{name}", stock, "a newer ComfyUI"], ours, name)


@check
def sd3_predicts_what_diffusers_does():
    """One with as many blocks as heads, one with more; with and without norms and a second attention."""
    agrees("sd3")
    agrees("sd3-deep")


@check
def flux_predicts_what_diffusers_does():
    """With an embedded guidance, and without: the host's FluxSchnell."""
    agrees("flux")
    agrees("flux-schnell")


@check
def chroma_predicts_what_diffusers_does():
    """With fewer blocks than the host's network is made for."""
    agrees("chroma")


@check
def flux2_predicts_what_diffusers_does():
    agrees_where_known("Flux2", "flux2")
    agrees_where_known("Flux2", "flux2-guided")


@check
def z_image_predicts_what_diffusers_does():
    """Narrower than the host's embedding of time."""
    agrees_where_known("ZImage", "z_image")


@check
def lumina2_predicts_what_diffusers_does():
    agrees("lumina2")


@check
def qwen_image_predicts_what_diffusers_does():
    agrees("qwen_image")


@check
def aura_flow_predicts_what_diffusers_does():
    agrees("aura_flow")


@check
def cosmos_and_anima_predict_what_diffusers_does():
    """One network; a flow through ratios of noise to data, and a plain one."""
    agrees("cosmos")
    agrees("anima")


@check
def wan_predicts_what_diffusers_does():
    agrees("wan")


@check
def ernie_image_predicts_what_diffusers_does():
    agrees_where_known("ErnieImage", "ernie_image")


@check
def pixart_sigma_predicts_what_diffusers_does():
    agrees("pixart_sigma")
