"""``lavi-bridge train RECIPE --dry-run``: all that can be known of a run before a weight is loaded."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ..lavi_core.config import LanguageConfig
from ..lavi_core.language import TextEncoder
from ..lavi_core.language.folder import weight_files
from ..lavi_core.vision import VISION_TARGETS, latent_scale
from . import disk, dryrun_data, lock, memory, models, parallel, state
from .batch import at_a_time
from .data import SOURCES
from .objective import Objective
from .optimizers import OPTIMIZERS
from .pair import GROUPS, Pair
from .pipeline import pick_device
from .recipe import Recipe
from .report import Report
from .vision_model import (
    VAE_FACTOR,
    VisionModel,
    check_weights,
    load_vae,
    network_folder,
    pictures_at_once,
    read_config,
)
from .weighting import WEIGHTINGS

log = logging.getLogger(__name__)
MARGIN = 1.5  # of a process over its tensors: 1.02 to 1.03 measured on a CPU, 1.24 to 1.47 with glibc's own allocator
PACKAGES: tuple[tuple[str, Callable[[Recipe], bool]], ...] = (
    ("bitsandbytes", lambda recipe: recipe.optimizer.kind in ("adamw8bit", "paged_adamw8bit")),
    ("schedulefree", lambda recipe: recipe.optimizer.kind == "schedule_free"),
    ("tensorboard", lambda recipe: "tensorboard" in recipe.trackers),
    ("wandb", lambda recipe: "wandb" in recipe.trackers),
    ("webdataset", lambda recipe: recipe.data.kind == "webdataset"),
)


def dry_run(recipe: Recipe, resume: bool = False) -> Report:
    """Check a recipe against this machine; nothing is written but a file that is deleted at once."""
    report = Report()
    world, device = int(os.environ.get("WORLD_SIZE", "1")), pick_device()
    report.add("recipe", f"{recipe.name}: {recipe.steps:,} steps of {recipe.batch_size}, {recipe.precision}")
    for check in (_batch, _names, _packages):
        report.got(check, report, recipe, world)
    report.got(_output, recipe, resume)
    encoder = report.got(_language, report, recipe)
    vision = report.got(_vision, report, recipe)
    vae = report.got(_vae, recipe)
    source = report.got(lambda: SOURCES[recipe.data.kind](recipe.data))
    count, tokens = None, recipe.prompt.max_length
    if source is not None:
        count = report.got(dryrun_data.pictures, report, recipe, source)
        if encoder is not None:
            tokens = report.got(dryrun_data.captions, report, recipe, source, encoder) or tokens
    if encoder is not None and vision is not None:
        report.got(_teacher, recipe, vision)
    latents = report.got(_latents, report, recipe, vae, vision, device) if vae is not None else None
    pair = report.got(_pair, recipe, encoder, vision) if encoder is not None and vision is not None else None
    if pair is not None:
        _trained(report, pair)
        report.got(disk.check, report, recipe, pair, latents, count, tokens)
        if latents is not None:
            report.got(_memory, report, pair, vae, latents, tokens, device, world)
    return report


def _batch(report: Report, recipe: Recipe, world: int) -> None:
    share = f"{at_a_time(recipe, world)} at a time, {recipe.accumulation} times"
    report.add("batch", f"{recipe.batch_size} = {share}, on {world} process{'es' if world > 1 else ''}")


def _names(report: Report, recipe: Recipe, world: int) -> None:
    for table, name in ((OPTIMIZERS, recipe.optimizer.kind), (WEIGHTINGS, recipe.loss.weighting)):
        report.got(table.__getitem__, name)


def _packages(report: Report, recipe: Recipe, world: int) -> None:
    for name, needed in PACKAGES:
        if needed(recipe) and find_spec(name) is None:
            report.problems.append(f"this recipe needs the package {name}, which is not installed: pip install {name}")


def _output(recipe: Recipe, resume: bool) -> None:
    output = Path(recipe.output)
    there = bool(state.states(output / "state"))
    if there and not resume:
        raise ValueError(f"{output} holds a run already; go on with --resume, or set another output")
    if resume and not any((output / name).exists() for name in ("state", "recipe.json", "log.jsonl")):
        raise ValueError(f"there is nothing to resume in {output}; run without --resume")
    if (output / lock.NAME).is_file():
        with lock.held(output):
            pass
    folder = disk.existing(output)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"nothing can be written to {folder} ({error.strerror}); set another output") from None


def _language(report: Report, recipe: Recipe) -> TextEncoder:
    path = models.language(recipe.language.model)
    encoder = TextEncoder.skeleton(path)
    if path.is_dir() and not weight_files(path):
        report.problems.append(f"{path} has no model.safetensors; fetch it, or save the model again as safetensors")
    encoder.tokenize([""], recipe.prompt)  # a max_length that the model has no positions for is refused here
    _cast(encoder.model, _dtype(recipe, recipe.language.train))
    found: LanguageConfig = encoder.config
    size = f"{found.num_layers} layers, width {found.hidden_size}, {_millions(encoder.model)}"
    report.add("language model", f"{found.model_id} ({found.family}): {size}, {recipe.language.train}")
    return encoder


def _vision(report: Report, recipe: Recipe) -> VisionModel:
    import diffusers

    folder = models.vision(recipe.vision.model)
    config, row = read_config(folder)
    if recipe.vision.target is not None and not VISION_TARGETS[recipe.vision.target].is_of(config):
        raise ValueError(f"{folder} is of the vision target {row.name}, the recipe says {recipe.vision.target!r}")
    report.got(check_weights, network_folder(folder))
    with torch.device("meta"):
        network: Any = getattr(diffusers, row.diffusers_class).from_config(config)
    _cast(network.requires_grad_(False), _dtype(recipe, recipe.vision.train))
    vision = VisionModel(
        network=network,
        objective=Objective.load(folder / "scheduler"),
        scale=latent_scale(network_folder(folder), row),
        model_id=config.get("model_id", folder.name),
        target=row.name,
    )
    takes = f"context width {vision.context_width}, {vision.objective.kind}, latents times {vision.scale:g}"
    report.add("vision model", f"{vision.model_id} ({row.name}): {_millions(network)}, {takes}, {recipe.vision.train}")
    return vision


def _vae(recipe: Recipe) -> Any:
    """On the meta device; of a TAESD file, which is small, with its weights."""
    import json

    import diffusers

    path = models.vae(recipe.vision.vae)
    if not (path / "config.json").is_file():
        return load_vae(path)
    check_weights(path)
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        return getattr(diffusers, config["_class_name"]).from_config(config).requires_grad_(False).eval()


def _latents(
    report: Report, recipe: Recipe, vae: Any, vision: VisionModel | None, device: torch.device
) -> tuple[int, int, int]:
    """[C h w] of one picture's latents, by running the VAE without data."""
    side = recipe.data.resolution
    peak, (channels, *sizes) = memory.encoding(vae, device, side, recipe.precision == "bf16")
    if sizes != [side // VAE_FACTOR] * 2:
        raise ValueError(
            f"the VAE {recipe.vision.vae} turns {side} pixels into {sizes[0]} latents, the vision models here take "
            f"{side // VAE_FACTOR}: name the VAE of the vision model"
        )
    if vision is not None and channels != vision.latent_channels:
        raise ValueError(
            f"the VAE {recipe.vision.vae} has {channels} latent channels, {vision.model_id} takes "
            f"{vision.latent_channels}: name the VAE of the vision model"
        )
    report.add("VAE", f"{type(vae).__name__}: {_millions(vae)}, {side} pixels to {channels} x {sizes[0]} x {sizes[1]}")
    report.add("  at work", f"{disk.size(peak)} (estimate)")
    return channels, sizes[0], sizes[1]


def _teacher(recipe: Recipe, vision: VisionModel) -> None:
    if not recipe.align.steps:
        return
    width = TextEncoder.skeleton(models.language(recipe.align.teacher)).config.hidden_size
    if width != vision.context_width:
        raise ValueError(
            f"align.teacher {recipe.align.teacher} gives width {width}, the vision model takes {vision.context_width}: "
            "name the vision model's own text encoder"
        )


def _pair(recipe: Recipe, encoder: TextEncoder, vision: VisionModel) -> Pair:
    with torch.device("meta"):
        return Pair(recipe, encoder, vision)


def _trained(report: Report, pair: Pair) -> None:
    rates = {name: getattr(pair.recipe, name).learning_rate for name in GROUPS}
    for name in GROUPS:
        count = sum(p.numel() for _, p in pair.group(name))
        sites = f", {len(pair.sites[name])} LoRA sites" if pair.sites.get(name) else ""
        if count:
            report.add(f"trained {name}", f"{count:,} parameters{sites}, learning rate {rates[name]:g}")


def _memory(
    report: Report, pair: Pair, vae: Any, latents: tuple[int, int, int], tokens: int, device: torch.device, world: int
) -> None:
    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

    recipe = pair.recipe
    values = sum(p.numel() for p in pair.trained().values())
    try:
        step = memory.training_step(pair, device, at_a_time(recipe, world), latents, tokens)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        report.notes.append(f"the memory of a step could not be estimated: this model asks for its data ({error})")
        return
    except (RuntimeError, TypeError) as error:  # a shape that does not fit
        raise ValueError(f"a training step does not run: {str(error).splitlines()[0]}") from error
    kept = {
        "optimizer": int(values * memory.MOMENTS.get(recipe.optimizer.kind, 8)),
        "average (ema)": 4 * values if recipe.ema else 0,
        "VAE": sum(p.nbytes for p in vae.parameters()),
    }
    drawn, count = 0, pictures_at_once(recipe.data.resolution)
    if recipe.sample.every:
        averages = kept["average (ema)"]  # the weights that train are kept aside
        drawn = memory.drawing(pair, vae, device, latents, tokens, count) + kept["optimizer"] + 2 * averages
    peak = max(step.peak + sum(kept.values()), drawn)
    there, free = memory.of_device(device)
    report.add("memory of a step", f"an estimate, for {device.type}; {disk.size(free)} of {disk.size(there)} are free")
    report.add("  weights", disk.size(step.weights))
    for name, bytes_ in kept.items():
        if bytes_:
            report.add(f"  {name}", disk.size(bytes_))
    report.add("  gradients", disk.size(step.gradients))
    report.add("  activations", f"{disk.size(step.kept)} kept for the backward pass")
    if drawn:
        report.add("  sample pictures", f"{disk.size(drawn)} while {count} are drawn at a time")
    report.add("  most at a time", f"{disk.size(peak)} in tensors; allocator and kernels take more, up to half of it")
    if peak > there:
        raise ValueError(
            f"a step takes about {disk.size(peak)}, the device has {disk.size(there)}: raise accumulation, lower "
            "batch_size, or set gradient_checkpointing = true"
        )
    if parallel.is_sharded():
        report.notes.append("the memory is that of a process which holds all weights; FSDP splits the frozen ones")
    if MARGIN * peak > free:
        report.notes.append(f"a step may take up to {disk.size(MARGIN * peak)}, {disk.size(free)} are free now")


def _dtype(recipe: Recipe, train: str) -> torch.dtype:
    """As the trainer loads them."""
    return torch.bfloat16 if recipe.precision == "bf16" and train != "full" else torch.float32


def _cast(module: torch.nn.Module, dtype: torch.dtype) -> None:
    """Weights alone: the libraries' loaders leave the tables of positions, which are no weights, in float32."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)


def _millions(module: torch.nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:,.1f} M parameters"
