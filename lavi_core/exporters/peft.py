"""A LoRA as peft reads it: what belongs into ``adapter_config.json`` and ``adapter_model.safetensors``.

The inverse of ``lora.from_peft``. The config holds no more than loading needs: peft refuses keys that its version does
not know, and any version knows these.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from torch import Tensor

from ..lora import LoRA

PREFIX = "base_model.model."


def to_peft(lora: LoRA) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(adapter_config, state dict) of a LoRA by the module paths of the model that peft is to load it onto.

    Tensors keep their dtypes. The sites are stated as one regex of whole paths, so that peft refuses a model that
    lacks them (a causal LM, whose trunk is one name deeper) instead of loading nothing. Raises ValueError where there
    is no delta.
    """
    if not lora:
        raise ValueError("there is no LoRA to export")
    ranks = {path: delta.down.shape[0] for path, delta in lora.items()}
    alphas = {path: delta.scale * ranks[path] for path, delta in lora.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": "|".join(map(re.escape, lora)),
        "rank_pattern": {re.escape(path): own for path, own in ranks.items() if own != rank},
        "alpha_pattern": {re.escape(path): own for path, own in alphas.items() if own != alpha},
    }
    state = {}
    for path, delta in lora.items():
        state[f"{PREFIX}{path}.lora_A.weight"] = delta.down
        state[f"{PREFIX}{path}.lora_B.weight"] = delta.up
    return config, state
