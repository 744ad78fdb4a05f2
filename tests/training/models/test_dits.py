"""The standalone sampler against diffusers' own pipelines, given the same states and the same noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lavi_bridge.lavi_core.conditioning import Conditioning
from lavi_bridge.tests.training import dits
from lavi_bridge.tests.training.dit_pipelines import PIPELINES, STEPS
from lavi_bridge.training.models.sampling import sample, scheduler_for
from lavi_bridge.training.models.vision_model import load_vision_model


@pytest.fixture(params=sorted(dits.FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def conditioning(prompt: dits.Prompt, row: dits.Family, pooled: bool) -> Conditioning:
    return Conditioning(prompt.context, prompt.mask.bool() if row.masks else None, prompt.pooled if pooled else None)


def at_levels(shares: list[float]) -> Any:
    scheduler = dits.Flow()
    scheduler.set_timesteps(sigmas=shares)
    return scheduler


def test_a_picture_is_that_of_diffusers_pipeline(family: str, tmp_path: Path) -> None:
    """Prompts of different lengths, padding behind them where the model hears a mask, guided, not square."""
    row = dits.FAMILIES[family]
    network = dits.write(family, tmp_path)
    vision = load_vision_model(tmp_path)
    assert vision.target == family and vision.latent_channels == row.channels
    assert vision.context_width == dits.TEXT and vision.row.pixels == row.pixels
    noise = torch.randn(1, row.channels, 8, 12, generator=torch.Generator().manual_seed(1))
    prompt, negative = dits.prompt(2, 9, 14), dits.prompt(3, 4, 14)
    scheduler = row.scheduler()
    if family == "flux2":  # its pipeline counts the number of steps in
        scheduler = dits.Flow(shift=vision.row.shift(8 * 12))  # type: ignore[misc]
    make, draw = PIPELINES[family]
    pipe = make(network, scheduler)
    pipe.set_progress_bar_config(disable=True)
    expected = draw(pipe, noise, prompt, negative, row.guidance)
    sigmas = pipe.scheduler.sigmas
    own: Callable[[], Any] = lambda: None  # noqa: E731
    if family in ("wan", "cosmos"):  # the pipelines take no levels from outside
        shares = sigmas[:-1] / (1 + sigmas[:-1]) if family == "cosmos" else sigmas[:-1]
        own = lambda: at_levels(shares.tolist())  # noqa: E731
    if family in ("kolors", "pixart_sigma"):  # whose first noise is scaled by the largest sigma alone
        assert torch.allclose(scheduler_for(vision.objective, STEPS).sigmas, sigmas)
        noise = noise * sigmas[0] / (1 + sigmas[0] ** 2).sqrt()
    pooled = vision.pooled_width is not None
    sides = [conditioning(side, row, pooled) for side in (prompt, negative)]
    found = sample(vision, sides[0], sides[1], noise, STEPS, row.guidance, scheduler=own())
    gap = float((found - expected).abs().max() / expected.abs().max())
    assert found.shape == expected.shape and gap < 2e-5, gap
    other = sample(vision, sides[1], sides[1], noise, STEPS, row.guidance, scheduler=own())
    assert float((other - expected).abs().max() / expected.abs().max()) > 1e-3  # the prompt is heard


def test_the_company_of_a_prompt_changes_nothing(family: str, tmp_path: Path) -> None:
    """Two prompts of different lengths in one batch, each against itself alone, unpadded where a mask is heard."""
    row = dits.FAMILIES[family]
    dits.write(family, tmp_path)
    vision = load_vision_model(tmp_path)
    x = torch.randn(2, row.channels, 8, 12, generator=torch.Generator().manual_seed(1))
    t = vision.timesteps(torch.tensor([0.7, 0.3]), x)
    prompts = [dits.prompt(2, 9, 14), dits.prompt(3, 4, 14)]
    pooled = torch.cat([prompt.pooled for prompt in prompts]) if vision.pooled_width is not None else None
    mask = torch.cat([prompt.mask for prompt in prompts]).bool() if row.masks else None
    with torch.no_grad():
        both = vision.predict(x, t, Conditioning(torch.cat([prompt.context for prompt in prompts]), mask, pooled))
        for i, prompt in enumerate(prompts):
            heard = conditioning(prompt, row, pooled is not None)
            alone = vision.predict(x[i : i + 1], t[i : i + 1], heard)
            assert torch.allclose(alone[0], both[i], rtol=0, atol=1e-5 * float(both.abs().max()))
            if vision.row.text.masked == "left_out" and not vision.row.text.unmasked:
                count = int(prompt.mask.sum())
                short = replace(heard, context=heard.context[:, :count], mask=None)
                unpadded = vision.predict(x[i : i + 1], t[i : i + 1], short)
                left = replace(heard, context=heard.context.roll(3, 1), mask=heard.mask.roll(3, 1))
                at_left = vision.predict(x[i : i + 1], t[i : i + 1], left)
                for found in (unpadded, at_left):
                    assert torch.allclose(found, alone, rtol=0, atol=1e-5 * float(both.abs().max()))
