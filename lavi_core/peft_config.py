"""Which PEFT folders hold a plain low-rank delta on an untouched model, by ``adapter_config.json`` (of peft 0.21)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Fields that may have any value: how a delta was trained or where it goes, all of which stands in the tensors.
FREE = {
    *("peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "task_type"),
    "inference_mode",
    *("r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "use_rslora"),
    *("layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "megatron_core", "megatron_config"),
    *("eva_config", "runtime_config", "qalora_group_size", "ensure_weight_tying"),
}
# What transformers calls heads: no part of the trunk that turns tokens into states.
HEADS = {"lm_head", "embed_out", "score", "classifier", "qa_outputs", "cls", "pooler", "classification_head"}
# Initialisations that take something out of the base weights, which the delta alone does not put back.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
FOREIGN = {
    "use_dora": "is a DoRA, which is more than a low-rank delta",
    "alora_invocation_tokens": "is an activated LoRA (aLoRA), which acts behind its own tokens alone",
    "layer_replication": "repeats layers of the base model (layer_replication)",
    "modules_to_save": "holds whole modules beside the LoRA (modules_to_save)",
    "trainable_token_indices": "holds trained embeddings beside the LoRA (trainable_token_indices)",
    "target_parameters": "adapts parameters that are no linear map (target_parameters)",
    "lora_bias": "holds trained biases (lora_bias)",
    "use_qalora": "is a QA-LoRA, whose input is pooled",
    "use_bdlora": "is a BD-LoRA",
    "kasa_config": "is a KaSA, whose singular values are more than a low-rank delta",
    "monteclora_config": "is a MonteCLoRA",
    "velora_config": "is a VeLoRA",
    "arrow_config": "is an Arrow router over several LoRAs",
    "corda_config": "was initialised by CorDA, which changes the base weights",
    "lora_ga_config": "was initialised by LoRA-GA, which changes the base weights",
    "loftq_config": "was initialised by LoftQ, which changes the base weights",
}


def check_plain(config: Mapping[str, Any], folder: Path) -> None:
    """Raise ValueError, in one sentence, unless merging the LoRA of this config into the plain model is what peft does.

    A field that is not known here, and is set, is named: what it does to the delta cannot be known.
    """
    way_out = "save it with peft's path_initial_model_for_weight_conversion, or train a plain LoRA"
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{folder} holds a {config.get('peft_type')}, only LoRA is read")
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(CHANGES_BASE):
        raise ValueError(
            f"{folder} was initialised by {start}, which changes the base weights, so its delta fits no plain model; "
            f"{way_out}"
        )
    if config.get("bias", "none") != "none":
        raise ValueError(f"{folder} was trained with bias = {config['bias']!r}; only bias = 'none' is read")
    for field, value in config.items():
        if field in FREE | {"init_lora_weights", "bias"} or not value:
            continue
        if field == "modules_to_save" and set(value) <= HEADS:  # which no trunk has
            continue
        what = FOREIGN.get(field, f"sets {field} = {value!r}, which is not known here")
        raise ValueError(f"{folder} {what}; only a plain LoRA is read: train one")
