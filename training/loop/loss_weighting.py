"""Which noise levels are trained on, and how much each counts: none, min-SNR or debiased weighting."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...lavi_core.registry import Registry
from ..models.objective import Objective
from ..recipe import LossSection

MAX_SNR = 1000.0  # without noise the ratio has no end


def _none(objective: Objective, timesteps: Tensor, section: LossSection) -> Tensor:
    return torch.ones_like(timesteps, dtype=torch.float32)


def _min_snr(objective: Objective, timesteps: Tensor, section: LossSection) -> Tensor:
    """min(SNR, gamma) of the error of x_0 (arXiv 2303.09556, eq. 8)."""
    snr = objective.snr(timesteps)
    return objective.in_x0(timesteps) * snr.clamp(max=section.gamma)


def _debiased(objective: Objective, timesteps: Tensor, section: LossSection) -> Tensor:
    """1 / sqrt(SNR) of the error of the noise, which is sqrt(SNR) of the error of x_0 (arXiv 2310.08442)."""
    snr = objective.snr(timesteps).clamp(max=MAX_SNR)
    return objective.in_x0(timesteps) * snr.sqrt()


def drawn(uniform: Tensor, section: LossSection) -> Tensor:
    """Uniform numbers in [0, 1) [B] as ``section.timesteps`` distributes them: "uniform" leaves them, "logit_normal"
    draws the middle levels more often (arXiv 2403.03206 eq. 19, mean 0 and deviation 1). The shift comes after it."""
    if section.timesteps == "uniform":
        return uniform
    exact = uniform if uniform.device.type == "cuda" else uniform.cpu()  # not every accelerator has float64
    return torch.special.ndtri(exact.double().clamp(1e-9, 1 - 1e-9)).sigmoid().to(uniform)


WEIGHTINGS: Registry[Callable[[Objective, Tensor, LossSection], Tensor]] = Registry(
    "loss weighting", {"none": _none, "min_snr": _min_snr, "debiased": _debiased}
)


def loss_weights(objective: Objective, timesteps: Tensor, section: LossSection) -> Tensor:
    """[B] float32 for timesteps [B]. The papers' weights are those of epsilon prediction; velocity and flow get the
    same weight of the error of x_0.
    """
    return WEIGHTINGS[section.weighting](objective, timesteps, section)
