"""Bridges whose adapters mix tokens, hear several layers or the timestep, and what they say and draw."""

from __future__ import annotations

from typing import Any

import torch
from lavi_bridge.lavi_core import lora
from lavi_bridge.lavi_core.bridge import Bridge
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.tests.nodes.tiny import PROMPTS, bridge
from lavi_bridge.training.models.sampling import noise_for, sample
from lavi_bridge.training.models.vision_model import load_vision_model
from torch import Tensor

RESAMPLED: dict[str, Any] = {"kind": "resampler", "tokens": 5, "depth": 2, "heads": 2, "inner": 16}
TIMED: dict[str, Any] = RESAMPLED | {"kind": "timestep_resampler", "depth": 1, "timestep_channels": 32}
# Adapter, and what of the prompt recipe is another; all to the U-Net "tiny-flow".
CONNECTORS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "resampled": (RESAMPLED, {"vision_mask": True}),
    "refined": ({"kind": "refiner", "depth": 1, "heads": 2}, {"vision_mask": True}),
    "mean": ({"kind": "mlp", "inner": 28}, {"hidden_states": "learned_mean"}),
    "stacked": ({"kind": "mlp", "inner": 28}, {"hidden_states": (0, 1)}),
}
# A folder of models/diffusers, its row, and whether it is a flow.
VISION = {
    "timed-flow": ("tiny-flow", "unet", True),
    "timed-sd1": ("tiny-sd1", "sd1", False),
    "timed-sd3": ("dit-sd3", "sd3", True),
    "timed-wan": ("dit-wan", "wan", True),
}
STEPS, GUIDANCE, SIZE = 4, 3.0, (16, 16)


@torch.no_grad()
def connectors(base: Any, encoder: TextEncoder) -> dict[str, Tensor]:
    """Files of bridges; contexts NAME.0 and NAME.1 of the first prompts, and latents sampled.NAME of a batch of two."""
    expected, flow = {}, load_vision_model(base.models / "diffusers" / "tiny-flow", "unet")
    for name, (adapter, recipe) in CONNECTORS.items():
        file = base.bridges / f"{name}.safetensors"
        checkpoint = bridge(file, encoder, flow.network, adapter=adapter, **recipe)
        connected = Bridge.connect(checkpoint, encoder, lora=None)
        for i, prompt in enumerate(PROMPTS[:2]):
            heard = connected([prompt])
            expected[f"{name}.{i}"] = heard.context if heard.mask is None else heard.context[:, heard.mask[0]]
    for name, (folder, row, is_flow) in VISION.items():
        vision = load_vision_model(base.models / "diffusers" / folder, row)
        pooled = vision.row.pooled_width(vision.network.config)
        file, objective = base.bridges / f"{name}.safetensors", "flow" if is_flow else "epsilon"
        checkpoint = bridge(file, encoder, vision.network, folder, row, pooled, objective=objective, adapter=TIMED)
        connected = Bridge.connect(checkpoint, encoder, lora=None)
        lora.merge(vision.network, checkpoint.vision_lora)
        sides = [connected.heard([prompt]) for prompt in PROMPTS[:2]]
        noise = noise_for(7, (2, vision.latent_channels, *SIZE))
        expected[f"sampled.{name}"] = sample(vision, *sides, noise, STEPS, GUIDANCE)
        fixed = [connected([prompt], torch.tensor(500.0)) for prompt in PROMPTS[:2]]
        other = sample(vision, *fixed, noise, STEPS, GUIDANCE)
        assert (other - expected[f"sampled.{name}"]).abs().max() > 1e-3 * other.abs().max(), name
    return expected
