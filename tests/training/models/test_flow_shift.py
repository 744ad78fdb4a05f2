"""The shift of a flow, where the model's folder or its row says it, and the noise levels drawn and gone through."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from lavi_bridge.lavi_core.vision import VISION_TARGETS
from lavi_bridge.training.loop.loss_weighting import drawn
from lavi_bridge.training.models.objective import Objective
from lavi_bridge.training.models.sampling import scheduler_for
from lavi_bridge.training.recipe import LossSection


def load(folder: Path, row: str | None = None, **config: object) -> Objective:
    (folder / "scheduler_config.json").write_text(json.dumps(config))
    return Objective.load(folder, None if row is None else VISION_TARGETS[row])


def test_dynamic_shifting_is_diffusers(tmp_path: Path) -> None:
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    config = {
        "use_dynamic_shifting": True,
        "base_shift": 0.5,
        "max_shift": 0.9,
        "max_image_seq_len": 8192,
        "shift": 3.0,
    }
    objective = load(tmp_path, _class_name="FlowMatchEulerDiscreteScheduler", **config)
    for tokens in (256, 1024, 4096, 6889):
        assert objective.shift_at(tokens) == pytest.approx(math.exp(calculate_shift(tokens, 256, 8192, 0.5, 0.9)))
    assert objective.shift_at(None) == 3.0
    half = objective.timesteps(torch.tensor([0.5]), 1024)
    assert float(half) == pytest.approx(1000 * objective.shift_at(1024) / (1 + objective.shift_at(1024)))


def test_klein_counts_its_own(tmp_path: Path) -> None:
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

    objective = load(tmp_path, "flux2", _class_name="FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True)
    for tokens in (1024, 4096, 5000):
        assert objective.shift_at(tokens) == pytest.approx(math.exp(compute_empirical_mu(tokens, 50)))
    assert math.log(objective.shift_at(4096)) == pytest.approx(2.02, abs=0.01)  # ComfyUI's


@pytest.mark.parametrize("solver", ["UniPCMultistepScheduler", "DPMSolverMultistepScheduler"])
def test_a_solver_for_flows_names_its_shift_otherwise(tmp_path: Path, solver: str) -> None:
    config = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 5.0}
    objective = load(tmp_path, _class_name=solver, **config)
    assert objective.kind == "flow" and objective.shift_at(1024) == 5.0
    assert scheduler_for(objective, 2).sigmas.tolist() == pytest.approx([1.0, 5 * 0.5 / (1 + 4 * 0.5), 0.0])


def test_cosmos_goes_through_ratios(tmp_path: Path) -> None:
    """ComfyUI's simple scheduler on its table of 1,000 ratios from 0.002 to 80, even in their logarithm."""
    objective = load(tmp_path, "cosmos", _class_name="FlowMatchEulerDiscreteScheduler", use_karras_sigmas=True)
    table = torch.linspace(math.log(0.002), math.log(80.0), 1000).exp()
    ratios = torch.stack([table[-(1 + int(i * 1000 / 3))] for i in range(3)])
    assert scheduler_for(objective, 3).sigmas[:-1].tolist() == pytest.approx((ratios / (1 + ratios)).tolist(), rel=1e-4)


def test_logit_normal_levels() -> None:
    uniform = torch.arange(0.5, 10_000) / 10_000
    assert torch.equal(drawn(uniform, LossSection()), uniform)
    levels = drawn(uniform, LossSection(timesteps="logit_normal"))
    logits = levels.double().logit()
    assert float(logits.mean()) == pytest.approx(0, abs=1e-3) and float(logits.std()) == pytest.approx(1, abs=1e-2)
    assert torch.isfinite(drawn(torch.tensor([0.0, 1.0]), LossSection(timesteps="logit_normal"))).all()
