"""Bridges to the diffusion transformers of ``vision_dits``, and the pictures that our own sampler draws with them."""

from __future__ import annotations

from typing import Any

import torch
from lavi_bridge.lavi_core import lora
from lavi_bridge.lavi_core.bridge import Bridge
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.tests.nodes import vision_dits
from lavi_bridge.tests.nodes.tiny import PROMPTS, bridge
from lavi_bridge.training.models.sampling import noise_for, sample
from lavi_bridge.training.models.vision_model import load_vision_model
from torch import Tensor

STEPS, GUIDANCE, STRENGTH = 3, 3.0, 0.7


@torch.no_grad()
def dit_bridges(base: Any, encoder: TextEncoder) -> dict[str, Tensor]:
    """A bridge to each, with LoRA on all its sites. Returns NAME.picture and NAME.picture.lora: a batch of two, guided,
    without the vision model's LoRA and with it; raw latents [2 C 8 12]."""
    expected = {}
    for folder in vision_dits.FOLDERS:
        name = f"dit-{folder}"
        vision = load_vision_model(base.models / "diffusers" / name)
        row, network = vision.row, vision.network
        objective, masked = vision.objective.kind, row.text.masked != "refused"
        pooled = row.pooled_width(network.config)
        file = base.bridges / f"{name}.safetensors"
        checkpoint = bridge(file, encoder, network, name, row.name, pooled, objective=objective, vision_mask=masked)
        connected = Bridge.connect(checkpoint, encoder, lora="merged", strength=STRENGTH)
        positive, negative = connected([PROMPTS[0]]), connected([PROMPTS[1]])
        assert encoder.lora is not None
        encoder.lora.remove()
        noise = noise_for(7, (2, vision.latent_channels, *vision_dits.SIZE))
        for what, deltas in (("picture", {}), ("picture.lora", checkpoint.vision_lora)):
            applied = lora.merge(network, deltas)
            expected[f"{name}.{what}"] = sample(vision, positive, negative, noise, STEPS, GUIDANCE)
            applied.remove()
        assert (expected[f"{name}.picture.lora"] - expected[f"{name}.picture"]).abs().max() > 1e-2, name
    return expected
