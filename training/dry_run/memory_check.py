"""The memory of a training step, part by part, against what the device has; the counting is memory_estimate.py's."""

from __future__ import annotations

from typing import Any

import torch

from ..data.batch import micro_batch_size
from ..loop import parallel
from ..models.own_encoder import OwnEncoder
from ..models.pair import Pair
from ..models.vae import vae_batch_size
from . import memory_estimate
from .report import Report, in_bytes

MARGIN = 1.5  # of a process over its tensors: 1.02 to 1.03 measured on a CPU, 1.24 to 1.47 with glibc's own allocator


def check(
    report: Report,
    pair: Pair,
    vae: Any,
    teacher: OwnEncoder | None,
    latents: tuple[int, int, int],
    tokens: int,
    device: torch.device,
    world: int,
) -> None:
    """teacher: of ``[align]``, which is there for as long as it is asked for predictions."""
    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

    recipe = pair.recipe
    values = sum(p.numel() for p in pair.trained().values())
    try:
        step = memory_estimate.training_step(pair, device, micro_batch_size(recipe, world), latents, tokens)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        report.notes.append(f"the memory of a step could not be estimated: this model asks for its data ({error})")
        return
    except (RuntimeError, TypeError) as error:  # a shape that does not fit
        raise ValueError(f"a training step does not run: {str(error).splitlines()[0]}") from error
    kept = {
        "optimizer": int(values * memory_estimate.MOMENTS.get(recipe.optimizer.kind, 8)),
        "average (ema)": 4 * values if recipe.ema else 0,
        "VAE": sum(p.nbytes for p in vae.parameters()),
    }
    if teacher is not None and recipe.align.prediction_steps:
        kept["teacher"] = teacher.nbytes
    asked = max(len(recipe.sample.prompts), recipe.sample.bench, 1)
    drawn, count = 0, min(asked, vae_batch_size(recipe.data.resolution))
    if recipe.sample.every:
        averages = kept["average (ema)"]  # the weights that train are kept aside
        drawn = memory_estimate.drawing(pair, vae, device, latents, tokens, count) + kept["optimizer"] + 2 * averages
        drawn += kept.get("teacher", 0)
    peak = max(step.peak + sum(kept.values()), drawn)
    there, free = memory_estimate.of_device(device)
    report.add("memory of a step", f"an estimate, for {device.type}; {in_bytes(free)} of {in_bytes(there)} are free")
    report.add("  weights", in_bytes(step.weights))
    for name, bytes_ in kept.items():
        if bytes_:
            report.add(f"  {name}", in_bytes(bytes_))
    report.add("  gradients", in_bytes(step.gradients))
    report.add("  activations", f"{in_bytes(step.kept)} kept for the backward pass")
    if drawn:
        report.add("  sample pictures", f"{in_bytes(drawn)} with {count} drawn at a time")
    report.add("  most at a time", f"{in_bytes(peak)} in tensors; allocator and kernels take more, up to half of it")
    if peak > there:
        raise ValueError(
            f"a step takes about {in_bytes(peak)}, the device has {in_bytes(there)}: raise accumulation, lower "
            "batch_size, or set gradient_checkpointing = true"
        )
    if parallel.is_sharded():
        report.notes.append("the memory is that of a process which holds all weights; FSDP splits the frozen ones")
    if MARGIN * peak > free:
        report.notes.append(f"a step may take up to {in_bytes(MARGIN * peak)}, {in_bytes(free)} are free now")
