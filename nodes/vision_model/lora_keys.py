"""Where the LoRA of a bridge lands in the host's network."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import comfy.lora
from comfy.model_patcher import ModelPatcher

from .registry import HOST_MODELS
from .renaming import substituted


def lora_keys(model: ModelPatcher, row: Any, names: Iterable[str]) -> dict[str, Any]:
    """Names of a row's KeyFormat -> the host's keys of these weights, where it has them: its own map first, then what
    older hosts' map lacks."""
    found, known = {}, comfy.lora.model_lora_keys_unet(model.model, {})
    rules = HOST_MODELS[row.name].rules if row.name in HOST_MODELS else ()
    weights = model.model.state_dict().keys() if rules else ()
    for name in names:
        own = "diffusion_model." + substituted(f"{name.removeprefix(row.keys.prefix)}.weight", rules)
        if name in known:
            found[name] = known[name]
        elif own in weights:
            found[name] = own
    return found
