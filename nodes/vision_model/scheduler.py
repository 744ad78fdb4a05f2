"""What a network predicts and on which noise schedule, from diffusers' ``scheduler_config.json``."""

from __future__ import annotations

from typing import Any

import comfy.model_base

# diffusers' beta_schedule -> the host's name for it
BETAS = {"scaled_linear": "linear", "linear": "sqrt_linear", "squaredcos_cap_v2": "squaredcos_cap_v2"}


def sampling(scheduler: dict[str, Any]) -> tuple[comfy.model_base.ModelType, dict[str, Any]]:
    """The host's model type and sampling settings. Raises ValueError for a schedule that the host does not have."""
    kinds = comfy.model_base.ModelType
    if is_flow(scheduler):
        return kinds.FLOW, {"shift": scheduler.get("shift", scheduler.get("flow_shift", 1.0)), "multiplier": 1000}
    predicts = scheduler.get("prediction_type", "epsilon")
    betas = scheduler.get("beta_schedule", "linear")
    if predicts not in ("epsilon", "v_prediction") or betas not in BETAS or scheduler.get("trained_betas"):
        raise ValueError(
            f"the scheduler predicts {predicts!r} on {betas!r} betas; this node knows epsilon, v_prediction and flow "
            f"matching, on {', '.join(BETAS)} betas without trained_betas"
        )
    return kinds.EPS if predicts == "epsilon" else kinds.V_PREDICTION, {
        "beta_schedule": BETAS[betas],
        "linear_start": scheduler.get("beta_start", 0.0001),
        "linear_end": scheduler.get("beta_end", 0.02),
        "timesteps": scheduler.get("num_train_timesteps", 1000),
        "zsnr": scheduler.get("rescale_betas_zero_snr", False),
    }


def is_flow(scheduler: dict[str, Any]) -> bool:
    kinds = scheduler.get("prediction_type") == "flow_prediction", scheduler.get("use_flow_sigmas")
    return "FlowMatch" in scheduler.get("_class_name", "") or any(kinds)


def flow_shift(scheduler: dict[str, Any], row: Any) -> float | None:
    """The shift of a flow; None = it grows with the picture, or is not said, and the host has a number of its own.

    Raises ValueError for the scheduler of another objective.
    """
    if not is_flow(scheduler):
        raise ValueError(
            f"the scheduler of this {row.name} model ({scheduler.get('_class_name')}) is of noise prediction, and "
            "ComfyUI knows such models by flow matching alone"
        )
    if row.shift is not None or scheduler.get("use_dynamic_shifting"):
        return None
    return scheduler.get("shift" if "FlowMatch" in scheduler.get("_class_name", "") else "flow_shift")
