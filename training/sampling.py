"""The standalone sampler: diffusers' Euler schedulers, on the same noise levels as ComfyUI's euler + simple."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..lavi_core.conditioning import Conditioning
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

    Either conditioning has the batch of the noise, or batch 1 for all of it. Contexts of different lengths, which
    cannot be one batch, are predicted one after the other.
    """
    scheduler = scheduler_for(vision.objective, steps)
    batch = noise.shape[0]
    sides = [_expand(side, batch) for side in (positive, negative)]
    if positive.context.shape[1] == negative.context.shape[1]:
        sides = [_join(*sides)]
    sigmas = scheduler.sigmas.to(noise.device)
    # As ComfyUI scales the first noise; a flow model starts from pure noise.
    x = noise * (1.0 if vision.objective.kind == "flow" else (1 + sigmas[0] ** 2).sqrt())
    for t in scheduler.timesteps:
        scaled = x if vision.objective.kind == "flow" else scheduler.scale_model_input(x, t)
        predictions = []
        for context, mask in sides:
            rows = scaled.repeat(len(context) // batch, 1, 1, 1)
            timesteps = t.to(x.device).expand(len(context))
            predictions.append(vision.predict(rows, timesteps, context, mask)[:, : x.shape[1]].float())
        heard, unheard = torch.cat(predictions).chunk(2)
        x = scheduler.step(unheard + guidance * (heard - unheard), t, x, return_dict=False)[0]
        if progress is not None:
            progress()
    return x / vision.scale


Side = tuple[Tensor, Tensor | None]  # context [B T C], mask [B T]


def _expand(heard: Conditioning, batch: int) -> Side:
    return heard.context.expand(batch, -1, -1), None if heard.mask is None else heard.mask.expand(batch, -1)


def _join(positive: Side, negative: Side) -> Side:
    (heard, heard_mask), (unheard, unheard_mask) = positive, negative
    mask = None if heard_mask is None or unheard_mask is None else torch.cat([heard_mask, unheard_mask])
    return torch.cat([heard, unheard]), mask
