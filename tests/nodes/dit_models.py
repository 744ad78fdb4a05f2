"""Tiny models with joint attention and newer DiTs in a base folder, bridges to them, and what our sampler draws."""

from __future__ import annotations

from typing import Any

import torch
from lavi_bridge.lavi_core import lora
from lavi_bridge.lavi_core.bridge import Bridge
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.lavi_core.vision import target_of
from lavi_bridge.tests.nodes.tiny import PROMPTS, bridge
from lavi_bridge.tests.training import dits
from lavi_bridge.training.models.sampling import noise_for, sample
from lavi_bridge.training.models.vision_model import load_vision_model
from torch import Tensor

NOT_HOSTED = ("sana", "kolors")  # no class of the host's
FAMILIES = tuple(sorted(dits.FAMILIES.keys() - set(NOT_HOSTED)))
SIZE = (8, 12)  # of the latents: an even number of tokens, not square
STEPS, GUIDANCE, STRENGTH = 3, 3.0, 0.7


def name_of(family: str) -> str:
    return "dit-" + family.replace("_", "-")


@torch.no_grad()
def dit_models(base: Any, encoder: TextEncoder) -> dict[str, Tensor]:
    """A folder and a bridge of each family, with LoRA on all its sites. Returns NAME.plain and NAME.lora: a batch of
    two pictures, guided, without the vision model's LoRA and with it; raw latents [2 C 8 12]."""
    expected = {}
    for family in FAMILIES:
        name, row = name_of(family), dits.FAMILIES[family]
        folder = base.models / "diffusers" / name
        network: Any = dits.write(family, folder, own_latents=False)
        target = target_of(network.config)
        pooled = target.pooled_width(network.config)
        file = base.bridges / f"{name}.safetensors"
        objective = "epsilon" if family == "pixart_sigma" else "flow"
        masked = target.text.masked != "refused"
        checkpoint = bridge(file, encoder, network, name, target.name, pooled, objective=objective, vision_mask=masked)
        connected = Bridge.connect(checkpoint, encoder, lora="merged", strength=STRENGTH)
        positive, negative = connected([PROMPTS[0]]), connected([PROMPTS[1]])
        assert encoder.lora is not None
        encoder.lora.remove()
        vision = load_vision_model(folder, target.name)
        noise = noise_for(7, (2, row.channels, *SIZE))
        for what in ("plain", "lora"):
            applied = lora.merge(vision.network, checkpoint.vision_lora if what == "lora" else {})
            expected[f"{name}.{what}"] = sample(vision, positive, negative, noise, STEPS, GUIDANCE)
            applied.remove()
        assert (expected[f"{name}.lora"] - expected[f"{name}.plain"]).abs().max() > 1e-2, name
    return expected
