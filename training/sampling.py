"""The standalone sampler: diffusers' Euler schedulers, on the same noise levels as ComfyUI's euler + simple."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..lavi_core.conditioning import Conditioning
from .objective import NUM_TIMESTEPS, Objective
from .vision_model import VisionModel


def noise_for(seed: int, shape: tuple[int, ...]) -> Tensor:
    """ComfyUI's noise for a seed: drawn on the CPU in float32."""
    return torch.randn(shape, generator=torch.manual_seed(seed))


def scheduler_for(objective: Objective, steps: int) -> Any:
    """An Euler scheduler with ComfyUI's "simple" spacing: from the noisiest level, evenly in timesteps, to zero."""
    import diffusers

    if objective.kind == "flow":
        scheduler: Any = diffusers.FlowMatchEulerDiscreteScheduler.from_config(objective.scheduler)
        taken = [1 - int(i * NUM_TIMESTEPS / steps) / NUM_TIMESTEPS for i in range(steps)]
        scheduler.set_timesteps(sigmas=taken)
    else:
        config = {**objective.scheduler, "timestep_spacing": "trailing", "steps_offset": 0}
        scheduler = diffusers.EulerDiscreteScheduler.from_config(config)
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

    The two contexts have equal length, or one of batch 1 and equal length.
    """
    scheduler = scheduler_for(vision.objective, steps)
    batch = noise.shape[0]
    context = torch.cat([positive.context.expand(batch, -1, -1), negative.context.expand(batch, -1, -1)])
    mask = None
    if positive.mask is not None and negative.mask is not None:
        mask = torch.cat([positive.mask.expand(batch, -1), negative.mask.expand(batch, -1)])
    sigmas = scheduler.sigmas.to(noise.device)
    # As ComfyUI scales the first noise; a flow model starts from pure noise.
    x = noise * (1.0 if vision.objective.kind == "flow" else (1 + sigmas[0] ** 2).sqrt())
    for t in scheduler.timesteps:
        scaled = x if vision.objective.kind == "flow" else scheduler.scale_model_input(x, t)
        timesteps = t.to(x.device).expand(2 * batch)
        prediction = vision.predict(torch.cat([scaled, scaled]), timesteps, context, mask)[:, : x.shape[1]].float()
        heard, unheard = prediction.chunk(2)
        x = scheduler.step(unheard + guidance * (heard - unheard), t, x, return_dict=False)[0]
        if progress is not None:
            progress()
    return x / vision.scale
