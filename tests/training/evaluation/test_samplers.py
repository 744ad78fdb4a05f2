"""UniPC on a vision model whose answer is known, for each kind of objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from lavi_bridge.lavi_core.conditioning import Conditioning
from lavi_bridge.lavi_core.vision import LatentSpace
from lavi_bridge.training.evaluation.samplers import SAMPLERS, unipc_scheduler
from lavi_bridge.training.models.objective import Objective
from lavi_bridge.training.models.vision_model import VisionModel
from torch import Tensor, nn

MEAN, SPREAD = 0.7, 0.4  # of the pictures: independent normal pixels


@dataclass
class Oracle(VisionModel):
    """Predicts exactly, for such pictures, what its objective asks for; where nothing is said it is 5 off."""

    def predict(
        self, x: Tensor, timesteps: Tensor, conditioning: Conditioning, guidance: float | None = None
    ) -> Tensor:
        t = timesteps.view(-1, 1, 1, 1).float()
        if self.objective.kind == "flow":
            noise = t / 1000
            signal = 1 - noise
        else:
            a = self.objective.alphas_cumprod[timesteps.long()].view(-1, 1, 1, 1)
            signal, noise = a.sqrt(), (1 - a).sqrt()
        variance = (signal * SPREAD) ** 2 + noise**2
        e = noise * (x - signal * MEAN) / variance  # E[noise | x]
        x0 = MEAN + signal * SPREAD**2 * (x - signal * MEAN) / variance  # E[x_0 | x]
        found = {"flow": e - x0, "epsilon": e, "v_prediction": signal * e - noise * x0}[self.objective.kind]
        return found + 5 * (conditioning.context[:, 0, 0] == 0).view(-1, 1, 1, 1)


def oracle(kind: Any) -> Oracle:
    from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

    if kind == "flow":
        objective = Objective(kind="flow", scheduler=dict(FlowMatchEulerDiscreteScheduler(shift=3.0).config), shift=3.0)
    else:
        scheduler = DDPMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=kind
        )
        objective = Objective(kind=kind, scheduler=dict(scheduler.config), alphas_cumprod=scheduler.alphas_cumprod)
    return Oracle(network=nn.Identity(), objective=objective, latents=LatentSpace(2.0), model_id="oracle", target="sd1")


@pytest.mark.parametrize(("kind", "limit"), [("flow", 0.003), ("epsilon", 0.05), ("v_prediction", 0.05)])
def test_unipc_follows_the_flow_to_the_pictures(kind: str, limit: float) -> None:
    """The probability flow of normal pixels is linear: noise n ends at MEAN + SPREAD (n - m) / s, m and s being mean
    and spread of what the sampler takes n to be. Guidance 1 hears the prompt alone."""
    model = oracle(kind)
    said, unsaid = (Conditioning(torch.full((1, 1, 1), value)) for value in (1.0, 0.0))
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    m, s = 0.0, 1.0
    if kind != "flow":
        a = model.objective.alphas_cumprod[-1]
        m, s = a.sqrt() * MEAN, (a * SPREAD**2 + 1 - a).sqrt()
    expected = (MEAN + SPREAD * (noise - m) / s) / model.scale
    taken: list[int] = []

    def error(sampler: str, steps: int) -> float:
        found = SAMPLERS[sampler](model, said, unsaid, noise, steps, 1.0, lambda: taken.append(steps))
        return float((found - expected).abs().max())

    assert error("unipc", 50) < limit < error("euler", 50)
    assert error("unipc", 400) < limit / 4
    assert (taken.count(50), taken.count(400)) == (100, 400)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_unipc_is_that_of_the_authors_diffusers(kind: str) -> None:
    """Golden: UniPCMultistepScheduler of diffusers 0.24.0, which their environment pins, on this oracle and noise. Its
    last step ends at the noise of t = 0 (0.0292); by newer defaults it ends at none, 0.037 away from here."""
    model, said = oracle(kind), Conditioning(torch.ones(1, 1, 1))
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    found = SAMPLERS["unipc"](model, said, said, noise, 50, 1.0).flatten()[:3] * model.scale
    assert found.tolist() == pytest.approx([0.2429003, 0.2325780, 0.5835722], abs=1e-5)
    scheduler = unipc_scheduler(model.objective, 50)
    assert scheduler.timesteps[-2:].tolist() == [40, 20]
    assert float(scheduler.sigmas[-1]) == pytest.approx((0.00085 / (1 - 0.00085)) ** 0.5, rel=1e-4)


def test_guidance_leaves_what_the_empty_prompt_says() -> None:
    """Unheard is 5 off: with guidance g the prediction is 5 (1 - g) off, with 1 it is not."""
    model, noise = oracle("flow"), torch.zeros(1, 4, 8, 8)
    said, unsaid = (Conditioning(torch.full((1, 1, 1), value)) for value in (1.0, 0.0))
    ends = [float(SAMPLERS["unipc"](model, said, unsaid, noise, 20, g).mean()) for g in (1.0, 2.0, 3.0)]
    assert ends[0] == pytest.approx(MEAN / 2, abs=0.05)
    assert ends[2] - ends[1] == pytest.approx(ends[1] - ends[0], rel=1e-3) and ends[1] - ends[0] > 1


def test_the_noise_levels_are_the_models_own() -> None:
    flow, epsilon = (unipc_scheduler(oracle(kind).objective, 4) for kind in ("flow", "epsilon"))
    even = [1 - 0.24975 * i for i in range(4)]  # from 1 to 1/1000 in 4 steps, that end not taken
    shifted = [3 * u / (1 + 2 * u) for u in even]
    assert flow.sigmas.tolist() == pytest.approx([*shifted, 0.0], abs=1e-5)
    assert epsilon.timesteps.tolist() == [999, 749, 500, 250]  # 5 points from 0 to 999, the last not taken
    assert float(epsilon.sigmas[0]) == pytest.approx(14.6146, abs=1e-3)  # Stable Diffusion's largest
