"""Corruption and targets against diffusers' own schedulers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from lavi_bridge.training.models.objective import Objective

LATENTS, NOISE = torch.randn(2, 3, 4, 8, 8, generator=torch.manual_seed(0))
T = torch.tensor([0, 500, 999])


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_ddpm_objectives_equal_diffusers(tmp_path: Path, kind: str) -> None:
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=kind)  # type: ignore[arg-type]
    scheduler.save_pretrained(tmp_path)
    objective = Objective.load(tmp_path)
    x, target = objective.corrupt(LATENTS, NOISE, T)
    torch.testing.assert_close(x, scheduler.add_noise(LATENTS, NOISE, T))  # type: ignore[arg-type]
    expected = NOISE if kind == "epsilon" else scheduler.get_velocity(LATENTS, NOISE, T)  # type: ignore[arg-type]
    torch.testing.assert_close(target, expected)
    assert objective.timesteps(torch.tensor([0.0, 0.5, 0.9999, 1.0])).tolist() == [0, 500, 999, 999]


def test_flow_equals_diffusers(tmp_path: Path) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.save_pretrained(tmp_path)
    objective = Objective.load(tmp_path)
    t = objective.timesteps(torch.tensor([0.25, 0.5, 1.0]))
    assert t.tolist() == pytest.approx([500.0, 750.0, 1000.0])
    x, target = objective.corrupt(LATENTS, NOISE, t)
    torch.testing.assert_close(x[1], scheduler.scale_noise(LATENTS[1:2], torch.tensor([750.0]), NOISE[1:2])[0])  # type: ignore[arg-type]
    torch.testing.assert_close(x - (t / 1000).view(-1, 1, 1, 1) * target, LATENTS)


def test_a_network_that_also_predicts_variance_is_scored_on_its_first_half() -> None:
    objective = Objective(kind="flow", scheduler={})
    prediction = torch.cat([NOISE, torch.full_like(NOISE, 1e3)], dim=1)
    assert objective.loss(prediction, NOISE).tolist() == [0, 0, 0]


def test_no_scheduler_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"scheduler_config\.json"):
        Objective.load(tmp_path)
