"""The standalone sampler: diffusers' Euler schedulers, on the same noise levels as ComfyUI's euler + simple."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...lavi_core.conditioning import Conditioning, Heard, TimedConditioning, stack, stack_states
from .objective import Objective
from .vision_model import VisionModel

# What defines a model's noise levels; a config's other keys are one sampler's taste (Karras spacing, a last level).
NOISE_SCHEDULE = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"),
    *("prediction_type", "rescale_betas_zero_snr"),
)


def noise_for(seed: int, shape: tuple[int, ...]) -> Tensor:
    """ComfyUI's noise for a seed: drawn on the CPU in float32."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def scheduler_for(objective: Objective, steps: int, tokens: int | None = None) -> Any:
    """An Euler scheduler with ComfyUI's "simple" spacing: from the noisiest level, evenly in timesteps, to zero.

    tokens: of a picture, where a flow's shift depends on them.
    """
    import diffusers

    if objective.kind == "flow":
        shift = 1.0 if objective.karras else objective.shift_at(tokens)
        scheduler: Any = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
        scheduler.set_timesteps(sigmas=_shares(objective, steps))
    else:
        config = {key: value for key, value in objective.scheduler.items() if key in NOISE_SCHEDULE}
        count = objective.num_timesteps
        scheduler = diffusers.EulerDiscreteScheduler.from_config(config, timestep_spacing="trailing")
        scheduler.set_timesteps(timesteps=[count - 1 - int(i * count / steps) for i in range(steps)])
    return scheduler


def _shares(objective: Objective, steps: int) -> list[float]:
    """The shares of noise that a flow goes through, before its shift. With ratios of noise to data r a share is
    r / (1 + r), and ComfyUI's table of r has 1000 of them, evenly in log r."""
    count = objective.noise_levels
    taken = [int(i * count / steps) for i in range(steps)]
    if objective.karras is None:
        return [1 - i / count for i in taken]
    least, most = map(math.log, objective.karras)
    ratios = [math.exp(most - (most - least) * i / (count - 1)) for i in taken]
    return [ratio / (1 + ratio) for ratio in ratios]


@torch.no_grad()
def sample(
    vision: VisionModel,
    positive: Heard,
    negative: Heard,
    noise: Tensor,
    steps: int = 20,
    guidance: float = 3.0,
    progress: Callable[[], object] | None = None,
    embedded_guidance: float | None = None,
    scheduler: Any = None,
) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598) with Euler steps. noise [B C h w] -> raw latents [B C h w].

    embedded_guidance: what a guidance-distilled network is told; None = what its row says. scheduler: None = that of
    ``scheduler_for``. Guidance of 1 is none, and the negative conditioning is not asked for.

    Either conditioning has the batch of the noise, or batch 1 for all of it. Conditionings that cannot be one batch
    (contexts of different lengths, a mask or a pooled vector in one alone) are predicted one after the other. One that
    depends on the timestep is made anew at each step, for both sides together.
    """
    scheduler = scheduler or scheduler_for(vision.objective, steps, vision.row.tokens(*noise.shape[-2:]))
    batch = noise.shape[0]
    sides = sides_of(positive, negative, batch) if guidance != 1 else [_expand(positive, batch)]
    sigmas = scheduler.sigmas.to(noise.device)
    # As ComfyUI scales the first noise.
    x = noise * (sigmas[0] if vision.objective.kind == "flow" else (1 + sigmas[0] ** 2).sqrt())
    for t in scheduler.timesteps:
        scaled = x if vision.objective.kind == "flow" else scheduler.scale_model_input(x, t)
        predicted = predict_guided(vision, scaled, t, sides, guidance, embedded_guidance)
        x = scheduler.step(predicted, t, x, return_dict=False)[0]
        if progress is not None:
            progress()
    return vision.latents.raw(x)


def sides_of(positive: Heard, negative: Heard, batch: int) -> list[Heard]:
    """Both in the batch of the noise: as one conditioning of twice the batch, or as two that cannot be one."""
    a, b = (_expand(side, batch) for side in (positive, negative))
    if isinstance(a, TimedConditioning) or isinstance(b, TimedConditioning):
        return [_join_timed(a, b)] if isinstance(a, TimedConditioning) and isinstance(b, TimedConditioning) else [a, b]
    return [_join(a, b)] if _alike(a, b) else [a, b]


def predict_guided(
    vision: VisionModel,
    x: Tensor,
    t: Tensor,
    sides: Sequence[Heard],
    guidance: float,
    embedded_guidance: float | None = None,
) -> Tensor:
    """x [B C h w] at timestep t [] -> the guided prediction [B C h w] float32; sides: of ``sides_of``, or the positive
    one alone."""
    batch, predictions = len(x), []
    for side in sides:
        heard = side.at(t) if isinstance(side, TimedConditioning) else side
        count = len(heard.context)
        rows = x.repeat(count // batch, 1, 1, 1)
        predicted = vision.predict(rows, t.to(x.device).expand(count), heard, embedded_guidance)
        predictions.append(predicted[:, : x.shape[1]].float())
    found = torch.cat(predictions)
    if len(found) == batch:
        return found
    positive, negative = found.chunk(2)
    return negative + guidance * (positive - negative)


def _expand(conditioning: Heard, batch: int) -> Heard:
    if isinstance(conditioning, TimedConditioning):
        mask = conditioning.hidden.mask
        return replace(conditioning, rows=torch.arange(len(mask), device=mask.device).expand(batch))
    mask, pooled = (
        None if part is None else part.expand(batch, -1) for part in (conditioning.mask, conditioning.pooled)
    )
    return Conditioning(conditioning.context.expand(batch, -1, -1), mask, pooled)


def _alike(a: Conditioning, b: Conditioning) -> bool:
    parts = ((a.mask, b.mask), (a.pooled, b.pooled))
    return a.context.shape == b.context.shape and all((x is None) == (y is None) for x, y in parts)


def _join_timed(a: TimedConditioning, b: TimedConditioning) -> TimedConditioning:
    """The adapter hears the rows of both once, however often the smaller of them is repeated."""
    assert a.rows is not None and b.rows is not None
    hidden = stack_states([a.hidden, b.hidden])
    own = None if a.own is None or b.own is None else stack([a.own, b.own])
    return TimedConditioning(hidden, a.adapt, torch.cat([a.rows, b.rows + len(a.hidden.mask)]), own)


def _join(a: Conditioning, b: Conditioning) -> Conditioning:
    parts = ((a.mask, b.mask), (a.pooled, b.pooled))
    mask, pooled = (None if x is None or y is None else torch.cat([x, y]) for x, y in parts)
    return Conditioning(torch.cat([a.context, b.context]), mask, pooled)
