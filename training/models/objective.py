"""The training objective: epsilon, v-prediction or flow matching, read from the vision model's scheduler config."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

NUM_TIMESTEPS = 1000
MIN_SNR = 1e-8  # pure noise has none, and epsilon's weights divide by it


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Corruption and target.

    "epsilon", "v_prediction": x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e with a = ``alphas_cumprod`` [1000] (DDPM, arXiv
    2006.11239 eq. 4; v = sqrt(a_t) e - sqrt(1 - a_t) x_0, arXiv 2202.00512 app. D).
    "flow": x_t = (1 - s) x_0 + s e, target e - x_0, t = 1000 s (rectified flow, arXiv 2209.03003), s shifted as in SD3
    (arXiv 2403.03206 eq. 23): larger ``shift`` spends more training and more sampling steps at high noise.
    """

    kind: Literal["epsilon", "v_prediction", "flow"]
    scheduler: dict
    alphas_cumprod: Tensor | None = None
    shift: float = 1.0

    @classmethod
    def load(cls, folder: str | Path) -> Objective:
        """From ``folder``/scheduler_config.json in diffusers' format."""
        path = Path(folder) / "scheduler_config.json"
        if not path.is_file():
            raise ValueError(f"the vision model has no {path}, which says what it predicts")
        config = json.loads(path.read_text())
        if config["_class_name"].startswith("FlowMatch"):
            return cls(kind="flow", scheduler=config, shift=config.get("shift", 1.0))
        from diffusers import DDPMScheduler

        scheduler: Any = DDPMScheduler.from_config(config)
        kind = scheduler.config["prediction_type"]
        if kind not in ("epsilon", "v_prediction"):
            raise ValueError(f"{path} has prediction_type {kind!r}; known: epsilon, v_prediction")
        return cls(kind=kind, scheduler=config, alphas_cumprod=scheduler.alphas_cumprod)

    def timesteps(self, uniform: Tensor) -> Tensor:
        """Uniform numbers in [0, 1] [B] to timesteps [B]: float in [0, 1000] for flow, long in 0..999 otherwise."""
        if self.kind == "flow":
            return NUM_TIMESTEPS * self.shift * uniform / (1 + (self.shift - 1) * uniform)
        return (uniform * NUM_TIMESTEPS).long().clamp(max=NUM_TIMESTEPS - 1)

    def corrupt(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """(x_t, target), both [B C H W] float32."""
        if self.kind == "flow":
            s = (timesteps / NUM_TIMESTEPS).view(-1, 1, 1, 1)
            return (1 - s) * latents + s * noise, noise - latents
        assert self.alphas_cumprod is not None
        a = self.alphas_cumprod.to(latents.device)[timesteps].view(-1, 1, 1, 1)
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
        a = self.alphas_cumprod.to(timesteps.device)[timesteps]
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
