"""The training objective: epsilon, v-prediction or flow matching, read from the vision model's scheduler config."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ...lavi_core.vision import NUM_TIMESTEPS, VisionTarget

MIN_SNR = 1e-8  # pure noise has none, and epsilon's weights divide by it


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Corruption and target.

    "epsilon", "v_prediction": x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e with a = ``alphas_cumprod`` [1000] (DDPM, arXiv
    2006.11239 eq. 4; v = sqrt(a_t) e - sqrt(1 - a_t) x_0, arXiv 2202.00512 app. D).
    "flow": x_t = (1 - s) x_0 + s e, target e - x_0, t = 1000 s (rectified flow, arXiv 2209.03003), s shifted as in SD3
    (arXiv 2403.03206 eq. 23): larger ``shift`` spends more training and more sampling steps at high noise.
    shift_of: the shift for a number of tokens, where it grows with the picture. noise_levels: how many ComfyUI's table
    of a flow's has. karras: (least, most) ratio of noise to data that a sampler goes through, where it goes through
    ratios (Cosmos) and not shares.
    """

    kind: Literal["epsilon", "v_prediction", "flow"]
    scheduler: dict
    alphas_cumprod: Tensor | None = None
    shift: float = 1.0
    shift_of: Callable[[int], float] | None = None
    noise_levels: int = NUM_TIMESTEPS
    karras: tuple[float, float] | None = None

    @classmethod
    def load(cls, folder: str | Path, row: VisionTarget | None = None) -> Objective:
        """From ``folder``/scheduler_config.json in diffusers' format; row: of the vision model."""
        path = Path(folder) / "scheduler_config.json"
        if not path.is_file():
            raise ValueError(f"the vision model has no {path}, which says what it predicts")
        config = json.loads(path.read_text())
        matches, solves = config["_class_name"].startswith("FlowMatch"), bool(config.get("use_flow_sigmas"))
        if matches or solves:  # UniPC's and DPM-Solver's configs name the shift otherwise
            ratios = matches and config.get("use_karras_sigmas")
            return cls(
                kind="flow",
                scheduler=config,
                shift=float(config.get("shift" if matches else "flow_shift", 1.0)),
                shift_of=(row.shift if row else None) or _shift_of(config),
                noise_levels=row.noise_levels if row else NUM_TIMESTEPS,
                karras=(config.get("sigma_min") or 0.002, config.get("sigma_max") or 80.0) if ratios else None,
            )
        from diffusers import DDPMScheduler

        scheduler: Any = DDPMScheduler.from_config(config)
        kind = scheduler.config["prediction_type"]
        if kind not in ("epsilon", "v_prediction"):
            raise ValueError(f"{path} has prediction_type {kind!r}; known: epsilon, v_prediction")
        return cls(kind=kind, scheduler=config, alphas_cumprod=scheduler.alphas_cumprod)

    @property
    def num_timesteps(self) -> int:
        return NUM_TIMESTEPS if self.alphas_cumprod is None else len(self.alphas_cumprod)

    def shift_at(self, tokens: int | None) -> float:
        """The shift for pictures of so many tokens; None = it does not depend on them, or is the fixed one."""
        return self.shift if tokens is None or self.shift_of is None else self.shift_of(tokens)

    def timesteps(self, uniform: Tensor, tokens: int | None = None) -> Tensor:
        """Uniform numbers in [0, 1] [B] to timesteps [B]: float in [0, 1000] for flow, long in 0..999 otherwise."""
        if self.kind == "flow":
            shift = self.shift_at(tokens)
            return NUM_TIMESTEPS * shift * uniform / (1 + (shift - 1) * uniform)
        return (uniform * self.num_timesteps).long().clamp(max=self.num_timesteps - 1)

    def corrupt(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """(x_t, target), both [B C H W] float32."""
        if self.kind == "flow":
            s = (timesteps / NUM_TIMESTEPS).view(-1, 1, 1, 1)
            return (1 - s) * latents + s * noise, noise - latents
        assert self.alphas_cumprod is not None
        a = self.alphas_cumprod.to(latents.device, non_blocking=True)[timesteps].view(-1, 1, 1, 1)
        corrupted = a.sqrt() * latents + (1 - a).sqrt() * noise
        if self.kind == "epsilon":
            return corrupted, noise
        return corrupted, a.sqrt() * noise - (1 - a).sqrt() * latents

    def snr(self, timesteps: Tensor) -> Tensor:
        """Signal to noise ratio, in powers, of x_t at timesteps [B]. -> [B] float32"""
        if self.kind == "flow":
            s = (timesteps / NUM_TIMESTEPS).clamp(min=1e-4, max=1)
            return (((1 - s) / s) ** 2).clamp(min=MIN_SNR)
        assert self.alphas_cumprod is not None
        a = self.alphas_cumprod.to(timesteps.device, non_blocking=True)[timesteps]
        return (a / (1 - a)).clamp(min=MIN_SNR)

    def in_x0(self, timesteps: Tensor) -> Tensor:
        """What the squared error of the prediction is to be multiplied with to be that of x_0. -> [B] float32"""
        if self.kind == "flow":  # x_0 = x_t - s v
            return (timesteps / NUM_TIMESTEPS) ** 2
        snr = self.snr(timesteps)
        return 1 / (snr + 1) if self.kind == "v_prediction" else 1 / snr

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Mean squared error of each picture [B]; a network that also predicts variance has it dropped."""
        prediction = prediction[:, : target.shape[1]].float()
        return torch.nn.functional.mse_loss(prediction, target, reduction="none").mean(dim=(1, 2, 3))


def _shift_of(config: dict) -> Callable[[int], float] | None:
    """A scheduler's dynamic shifting: mu between ``base_shift`` and ``max_shift``, linear in the number of tokens, and
    the shift e^mu, or mu itself where the config says so (FlowMatchEulerDiscreteScheduler of diffusers)."""
    if not config.get("use_dynamic_shifting"):
        return None
    least, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    linear = config.get("time_shift_type", "exponential") == "linear"

    def shift(tokens: int) -> float:
        mu = least + (most - least) * (tokens - few) / (many - few)
        return mu if linear else math.exp(mu)

    return shift
