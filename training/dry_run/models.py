"""The models of a recipe, built without their weights: sizes, widths and what is trained."""

from __future__ import annotations

from typing import Any

import torch

from ...lavi_core.config import LanguageConfig, OwnEncoderConfig
from ...lavi_core.language import TextEncoder
from ...lavi_core.vision import VISION_TARGETS, latent_space
from ..loop.alignment import check_prediction, check_teacher
from ..models import named
from ..models.diffusers_folder import check_weights, network_class, network_folder, read_config
from ..models.objective import Objective
from ..models.own_encoder import OwnEncoder, read_ear
from ..models.pair import GROUPS, Pair
from ..models.vae import load_vae
from ..models.vision_model import VisionModel
from ..recipe import Recipe
from . import memory_estimate
from .report import Report, in_bytes


def language(report: Report, recipe: Recipe) -> TextEncoder:
    path = named.language(recipe.language.model)
    encoder = TextEncoder.skeleton(path)
    report.got(TextEncoder.verify, path)
    encoder.tokenize([""], recipe.prompt)  # a max_length that the model has no positions for is refused here
    _cast(encoder.model, _dtype(recipe, recipe.language.train))
    found: LanguageConfig = encoder.config
    size = f"{found.num_layers} layers, width {found.hidden_size}, {_millions(encoder.model)}"
    report.add("language model", f"{found.model_id} ({found.family}): {size}, {recipe.language.train}")
    return encoder


def vision(report: Report, recipe: Recipe) -> VisionModel:
    folder = named.vision(recipe.vision.model)
    config, row = read_config(folder)
    if recipe.vision.target is not None and not VISION_TARGETS[recipe.vision.target].is_of(config):
        raise ValueError(f"{folder} is of the vision target {row.name}, the recipe says {recipe.vision.target!r}")
    report.got(check_weights, network_folder(folder))
    with torch.device("meta"):
        network: Any = network_class(row).from_config(config)
    _cast(network.requires_grad_(False), _dtype(recipe, recipe.vision.train))
    vision = VisionModel(
        network=network,
        objective=Objective.load(folder / "scheduler", row),
        latents=latent_space(network_folder(folder), row),
        model_id=config.get("model_id", folder.name),
        target=row.name,
    )
    takes = f"context width {vision.context_width}, {vision.objective.kind}, latents times {vision.scale:g}"
    report.add("vision model", f"{vision.model_id} ({row.name}): {_millions(network)}, {takes}, {recipe.vision.train}")
    return vision


def vae(recipe: Recipe) -> Any:
    """On the meta device; of a TAESD file, which is small, with its weights."""
    import json

    import diffusers

    path = named.vae(recipe.vision.vae)
    if not (path / "config.json").is_file():
        return load_vae(path)
    check_weights(path)
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        return getattr(diffusers, config["_class_name"]).from_config(config).requires_grad_(False).eval()


def latents(
    report: Report, recipe: Recipe, vae: Any, vision: VisionModel | None, device: torch.device
) -> tuple[int, int, int]:
    """[C h w] of one picture's latents, by running the VAE without data."""
    side = recipe.data.resolution
    pixels = 8 if vision is None else vision.row.pixels
    peak, (channels, *sizes) = memory_estimate.encoding(vae, device, side, recipe.precision == "bf16")
    if sizes != [side // pixels] * 2:
        raise ValueError(
            f"the VAE {recipe.vision.vae} turns {side} pixels into {sizes[0]} latents, the vision models here take "
            f"{side // pixels}: name the VAE of the vision model"
        )
    if vision is not None and channels != vision.latent_channels:
        raise ValueError(
            f"the VAE {recipe.vision.vae} has {channels} latent channels, {vision.model_id} takes "
            f"{vision.latent_channels}: name the VAE of the vision model"
        )
    report.add("VAE", f"{type(vae).__name__}: {_millions(vae)}, {side} pixels to {channels} x {sizes[0]} x {sizes[1]}")
    report.add("  at work", f"{in_bytes(peak)} (estimate)")
    return channels, sizes[0], sizes[1]


def teacher(recipe: Recipe, pair: Pair) -> OwnEncoder | None:
    """That of ``[align]``, without weights; None where nothing is asked of one."""
    if not (recipe.align.asked or recipe.align.prediction_steps):
        return None
    own = OwnEncoder.skeleton(named.teacher(recipe.align.teacher), recipe.precision)
    if recipe.align.asked:
        check_teacher(recipe, own, pair.adapter_config)
    if recipe.align.prediction_steps:
        check_prediction(recipe, own, pair.adapter_config)
    return own


def own_encoder(report: Report, recipe: Recipe) -> OwnEncoderConfig | None:
    ear = read_ear(recipe)
    if ear is not None:
        pooled = "" if ear.pooled_width is None else f" and a pooled vector of {ear.pooled_width}"
        report.add(
            "own encoder",
            f"{ear.name}: {ear.prompt.max_length} tokens {ear.place} the bridge's, width {ear.width}{pooled}",
        )
    return ear


def pair(recipe: Recipe, encoder: TextEncoder, vision: VisionModel, ear: OwnEncoderConfig | None = None) -> Pair:
    with torch.device("meta"):
        return Pair(recipe, encoder, vision, ear)


def trained(report: Report, pair: Pair) -> None:
    for name in GROUPS:
        count = sum(p.numel() for _, p in pair.group(name))
        sites = f", {len(pair.sites[name])} LoRA sites" if pair.sites.get(name) else ""
        if count:
            report.add(f"trained {name}", f"{count:,} parameters{sites}, learning rate {pair.rate(name):g}")


def _dtype(recipe: Recipe, train: str) -> torch.dtype:
    """As the trainer loads them."""
    return torch.bfloat16 if recipe.precision == "bf16" and train != "full" else torch.float32


def _cast(module: torch.nn.Module, dtype: torch.dtype) -> None:
    """Weights alone: the libraries' loaders leave the tables of positions, which are no weights, in float32."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)


def _millions(module: torch.nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:,.1f} M parameters"
