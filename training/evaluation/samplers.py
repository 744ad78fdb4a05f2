"""The samplers of an evaluation: the paper's UniPC, and the Euler steps that ComfyUI's euler + simple takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from ...lavi_core.conditioning import Heard
from ...lavi_core.registry import Registry
from ...lavi_core.vision import NUM_TIMESTEPS
from ..models.objective import Objective
from ..models.sampling import predict_guided, sample, sides_of
from ..models.vision_model import VisionModel


class Sampler(Protocol):
    """noise [B C h w] -> raw latents [B C h w], by classifier-free guidance."""

    def __call__(
        self,
        vision: VisionModel,
        positive: Heard,
        negative: Heard,
        noise: Tensor,
        steps: int,
        guidance: float,
        progress: Callable[[], object] | None = None,
    ) -> Tensor: ...


def unipc_scheduler(objective: Objective, steps: int, tokens: int | None = None) -> Any:
    """UniPC (arXiv 2302.04867) as the authors' test scripts make it: from the vision model's own scheduler config, with
    the defaults of their diffusers, 0.24, for the rest: linspace timesteps, order 2, a last step that ends at the noise
    of t = 0, where newer ones end at none, further off the exact flow. A flow model's shift is taken over."""
    from diffusers import UniPCMultistepScheduler

    if objective.kind == "flow":
        scheduler: Any = UniPCMultistepScheduler(
            num_train_timesteps=NUM_TIMESTEPS,
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=objective.shift_at(tokens),
        )
    else:
        scheduler = UniPCMultistepScheduler.from_config(objective.scheduler, final_sigmas_type="sigma_min")
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    return scheduler


@torch.no_grad()
def unipc(
    vision: VisionModel,
    positive: Heard,
    negative: Heard,
    noise: Tensor,
    steps: int,
    guidance: float,
    progress: Callable[[], object] | None = None,
) -> Tensor:
    """See ``Sampler``. The scheduler keeps its timesteps as integers; a flow model hears its true ones."""
    scheduler = unipc_scheduler(vision.objective, steps, vision.row.tokens(*noise.shape[-2:]))
    flow = vision.objective.kind == "flow"
    timesteps = scheduler.sigmas[:-1] * NUM_TIMESTEPS if flow else scheduler.timesteps
    sides = sides_of(positive, negative, len(noise))
    x = noise * scheduler.init_noise_sigma
    for t, timestep in zip(scheduler.timesteps, timesteps, strict=True):
        predicted = predict_guided(vision, x, timestep, sides, guidance)
        with torch.autocast(x.device.type, enabled=False):  # which would take UniPC's own sums to bf16
            x = scheduler.step(predicted, t, x, return_dict=False)[0]
        if progress is not None:
            progress()
    return vision.latents.raw(x)


SAMPLERS: Registry[Sampler] = Registry("sampler", {"unipc": unipc, "euler": sample})
