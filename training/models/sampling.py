"""The standalone sampler: diffusers' Euler schedulers, on the same noise levels as ComfyUI's euler + simple."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...lavi_core.conditioning import Conditioning
from .objective import NUM_TIMESTEPS, Objective
from .vision_model import VisionModel

# What defines a model's noise levels; a config's other keys are one sampler's taste (Karras spacing, dynamic shifting).
NOISE_SCHEDULE = (
    *("num_train_timesteps", "shift", "beta_start", "beta_end", "beta_schedule", "trained_betas"),
    *("prediction_type", "rescale_betas_zero_snr"),
)


def noise_for(seed: int, shape: tuple[int, ...]) -> Tensor:
    """ComfyUI's noise for a seed: drawn on the CPU in float32."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def scheduler_for(objective: Objective, steps: int) -> Any:
    """An Euler scheduler with ComfyUI's "simple" spacing: from the noisiest level, evenly in timesteps, to zero."""
    import diffusers

    config = {key: value for key, value in objective.scheduler.items() if key in NOISE_SCHEDULE}
    if objective.kind == "flow":
        scheduler: Any = diffusers.FlowMatchEulerDiscreteScheduler.from_config(config)
        taken = [1 - int(i * NUM_TIMESTEPS / steps) / NUM_TIMESTEPS for i in range(steps)]
        scheduler.set_timesteps(sigmas=taken)
    else:
        scheduler = diffusers.EulerDiscreteScheduler.from_config(config, timestep_spacing="trailing")
        scheduler.set_timesteps(timesteps=[NUM_TIMESTEPS - 1 - int(i * NUM_TIMESTEPS / steps) for i in range(steps)])
    return scheduler


@torch.no_grad()
def sample(
    vision: VisionModel,
    positive: Conditioning,
    negative: Conditioning,
    noise: Tensor,
    steps: int = 20,
    guidance: float = 3.0,
    progress: Callable[[], object] | None = None,
) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598) with Euler steps. noise [B C h w] -> raw latents [B C h w].

    Either conditioning has the batch of the noise, or batch 1 for all of it. Conditionings that cannot be one batch
    (contexts of different lengths, a mask or a pooled vector in one alone) are predicted one after the other.
    """
    scheduler = scheduler_for(vision.objective, steps)
    batch = noise.shape[0]
    sides = sides_of(positive, negative, batch)
    sigmas = scheduler.sigmas.to(noise.device)
    # As ComfyUI scales the first noise; a flow model starts from pure noise.
    x = noise * (1.0 if vision.objective.kind == "flow" else (1 + sigmas[0] ** 2).sqrt())
    for t in scheduler.timesteps:
        scaled = x if vision.objective.kind == "flow" else scheduler.scale_model_input(x, t)
        x = scheduler.step(predict_guided(vision, scaled, t, sides, guidance), t, x, return_dict=False)[0]
        if progress is not None:
            progress()
    return x / vision.scale


def sides_of(positive: Conditioning, negative: Conditioning, batch: int) -> list[Conditioning]:
    """Both in the batch of the noise: as one conditioning of twice the batch, or as two that cannot be one."""
    sides = [_expand(side, batch) for side in (positive, negative)]
    return [_join(*sides)] if _alike(*sides) else sides


def predict_guided(vision: VisionModel, x: Tensor, t: Tensor, sides: list[Conditioning], guidance: float) -> Tensor:
    """x [B C h w] at timestep t [] -> the guided prediction [B C h w] float32; sides: of ``sides_of``."""
    batch, predictions = len(x), []
    for side in sides:
        count = len(side.context)
        rows = x.repeat(count // batch, 1, 1, 1)
        predictions.append(vision.predict(rows, t.to(x.device).expand(count), side)[:, : x.shape[1]].float())
    positive, negative = torch.cat(predictions).chunk(2)
    return negative + guidance * (positive - negative)


def _expand(conditioning: Conditioning, batch: int) -> Conditioning:
    mask, pooled = (
        None if part is None else part.expand(batch, -1) for part in (conditioning.mask, conditioning.pooled)
    )
    return Conditioning(conditioning.context.expand(batch, -1, -1), mask, pooled)


def _alike(a: Conditioning, b: Conditioning) -> bool:
    parts = ((a.mask, b.mask), (a.pooled, b.pooled))
    return a.context.shape == b.context.shape and all((x is None) == (y is None) for x, y in parts)


def _join(a: Conditioning, b: Conditioning) -> Conditioning:
    parts = ((a.mask, b.mask), (a.pooled, b.pooled))
    mask, pooled = (None if x is None or y is None else torch.cat([x, y]) for x, y in parts)
    return Conditioning(torch.cat([a.context, b.context]), mask, pooled)
