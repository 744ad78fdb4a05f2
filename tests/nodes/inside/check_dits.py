"""Diffusion transformers in the host: folders of diffusers predict what diffusers' networks do."""

# pyright: reportMissingImports=false

from __future__ import annotations

import importlib
import json

import comfy.model_management
import comfy.supported_models
import torch
from host_side import EXPECTED, MODELS, check, vision_model_

Conditioning = importlib.import_module("hyphen-pack.lavi_core.conditioning").Conditioning

LEVELS = (0.8, 0.35)
CPU = torch.device("cpu")


def folder_of(name):
    return MODELS / "diffusers" / f"dit-{name}"


def row_of(name):
    config = json.loads((folder_of(name) / "transformer" / "config.json").read_text())
    return importlib.import_module("hyphen-pack.lavi_core.vision").target_of(config)


def conditions(row, name, alone):
    """What a bridge's conditioning must be for the host to hear what the row says: no token that is to be left out, the
    mask as whole numbers where one is heard."""
    given = {key: EXPECTED[f"dit-{name}.{key}"] for key in ("context", "mask", "pooled")}
    mask = None if row.text.masked == "refused" else given["mask"]
    context = given["context"]
    if alone:
        context, mask = context[:, :9], None
    heard = row.text.hear(Conditioning(context, mask, None))
    found = {"cross_attn": heard.context}
    if heard.mask is not None and row.text.masked == "left_out":
        found["cross_attn"] = heard.context[:, : int(heard.mask.sum())]
    elif heard.mask is not None:
        found["attention_mask"] = heard.mask.long()
    if row.pooled_key:
        found["pooled_output"] = given["pooled"]
    if row.embedded_guidance != 1:
        found["guidance"] = row.embedded_guidance
    return found


def predicted(patcher, x, share, found):
    """The network's prediction, of noise - data, out of what the host's sampler gets: the denoised latents."""
    comfy.model_management.load_models_gpu([patcher], force_full_load=True)
    model, shape = patcher.model, x.shape
    if model.latent_format.latent_dimensions == 3:
        x = x.unsqueeze(2)
    ratio = model.model_type.name == "FLOW_COSMOS"  # noise to data, in latents that are not shrunk by it
    given, sigma = (x / (1 - share), share / (1 - share)) if ratio else (x, share)
    extra = model.extra_conds(**found, noise=given, device=CPU, latent_shapes=None)
    ready = {key: cond.process_cond(batch_size=1, device=CPU, area=None).cond for key, cond in extra.items()}
    denoised = model.apply_model(given, torch.tensor([sigma]), transformer_options={}, **ready)
    return ((x - denoised) / share).reshape(shape)


def gaps(name):
    """Of a folder: the largest differences to diffusers, relative to the largest number, by case."""
    row, patcher = row_of(name), vision_model_.load(folder_of(name))
    x, found = EXPECTED[f"dit-{name}.x"], {}
    for level in LEVELS:
        for end in ("", ".alone"):
            right = EXPECTED[f"dit-{name}.{level}{end}"]
            ours = predicted(patcher, x, level, conditions(row, name, bool(end)))
            found[f"{level}{end}"] = ((ours - right).abs().max() / right.abs().max()).item()
    comfy.model_management.unload_all_models()
    return found


def agrees(*names):
    for name in names:
        found = gaps(name)
        assert max(found.values()) < 1e-5, (name, found)


@check
def sd3_predicts_what_diffusers_does():
    """One with as many blocks as heads, one with more; with and without norms and a second attention."""
    agrees("sd3", "sd3-deep")


@check
def flux_predicts_what_diffusers_does():
    """With an embedded guidance, and without: the host's FluxSchnell."""
    agrees("flux", "flux-schnell")
