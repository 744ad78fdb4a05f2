"""What a GGUF file says of its model beside the tensors -> a transformers config that every key is held to.

transformers 5.24 reads some keys of some architectures and leaves the rest at its defaults without a word (the scaling
of rotary positions, biases, widths of heads). Here each key under the architecture's name is honoured, is known to
shape no hidden state, or is refused. Keys: gguf's constants.py; their meaning: llama.cpp's src/llama-model.cpp and
convert_hf_to_gguf.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from .gguf_rotation import ROTATION, rotate

# An architecture of llama.cpp -> transformers' model_type. Each is compared, in a test or with a file of llama.cpp's
# converter, with the folder that it was made of.
KINDS: Mapping[str, str] = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen2moe": "qwen2_moe",
    "qwen3": "qwen3",
    "qwen3moe": "qwen3_moe",
    "phi3": "phi3",
    "stablelm": "stablelm",
    "gpt2": "gpt2",
    "starcoder2": "starcoder2",
    "mamba": "mamba",
    "nemotron": "nemotron",
    "bloom": "bloom",
    "falcon": "falcon",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "lfm2": "lfm2",
    "t5": "t5",
    "t5encoder": "t5",
}
# What only logits or other tools depend on.
HARMLESS = {
    *("tensor_data_layout", "pooling_type", "logit_scale", "final_logit_softcapping", "decoder_start_token_id"),
    *("decoder_block_count", "attention.value_length"),
}
# key -> names of the same in configs: the first that a config has is set.
ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "vocab_size": ("vocab_size",),
    "block_count": ("num_hidden_layers", "num_layers"),
    "embedding_length": ("hidden_size", "d_model"),
    "feed_forward_length": ("d_ff", "n_inner", "intermediate_size"),
    "context_length": ("max_position_embeddings", "n_positions"),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads", "num_kv_heads"),
    "attention.key_length": ("d_kv", "head_dim"),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps", "layer_norm_epsilon"),
    "attention.relative_buckets_count": ("relative_attention_num_buckets",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "use_parallel_residual": ("use_parallel_residual",),
    "expert_count": ("num_experts", "num_local_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "expert_weights_norm": ("norm_topk_prob",),
    "ssm.conv_kernel": ("conv_kernel",),
    "ssm.inner_size": ("intermediate_size",),
    "ssm.state_size": ("state_size",),
    "ssm.time_step_rank": ("time_step_rank",),
    "shortconv.l_cache": ("conv_L_cache",),
}
# What every file says, and those of a kind, whose defaults llama.cpp and transformers do not share.
REQUIRED = ("embedding_length", "block_count")
REQUIRED_OF: Mapping[str, tuple[str, ...]] = {
    "stablelm": ("rope.dimension_count",),
    "gemma2": ("attention.head_count", "attention.key_length"),
    "gemma3_text": ("attention.head_count", "attention.key_length", "rope.freq_base"),
    "lfm2": ("attention.head_count_kv",),
}
# Of no matter where they are zero.
OFF = {
    *("ssm.dt_b_c_rms", "nextn_predict_layers", "expert_count", "expert_used_count", "attention.head_count"),
    "feed_forward_length",
}
NO_PLACE = ("context_length", "feed_forward_length")  # where a config has none: no table of positions; told by shapes
# A part of a config -> an end of a tensor's name that shows it is there.
BY_TENSORS = {"attention_bias": "attn_q.bias", "mlp_bias": "ffn_down.bias", "use_qkv_bias": "attn_q.bias"}
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_27B = (46, 62)  # layers of Gemma 2 and Gemma 3 of 27 B, which scale their queries by another width than the heads'


def config_of(architecture: str, keys: Mapping[str, Any], tensors: Set[str], vocabulary: int, name: str) -> Any:
    """A transformers config. keys: those of the file under its architecture's name, without it. tensors: their names.
    vocabulary: how many tokens the file lists. name: of the file, for messages.

    Raises ValueError, in one sentence, for a key that a hidden state may depend on and that is not honoured.
    """
    from transformers import CONFIG_MAPPING

    if architecture not in KINDS:
        raise ValueError(
            f"{name} is of the architecture {architecture}, GGUF files of {', '.join(KINDS)} are read; take the "
            "model's own folder"
        )
    if architecture == "falcon" and int(keys.get("attention.head_count_kv", 1)) > 1:
        raise ValueError(
            f"{name} is a Falcon of several key heads, whose fused weights llama.cpp stores in another order; take "
            "the model's own folder"
        )
    kind = _kind(KINDS[architecture], keys, tensors)
    missing = [key for key in (*REQUIRED, *REQUIRED_OF.get(kind, ())) if key not in keys]
    if not any(key.endswith("epsilon") for key in keys):
        missing.append("attention.layer_norm_rms_epsilon")
    if missing or isinstance(keys.get("attention.head_count"), list):
        what = f"does not say {architecture}.{missing[0]}" if missing else "has other heads in each layer"
        raise ValueError(f"{name} {what}; take the model's own folder")
    default = CONFIG_MAPPING[kind]()
    values: dict[str, Any] = {"vocab_size": vocabulary, **dict.fromkeys(TOKENS), **_of_its_kind(kind, keys, tensors)}
    for key, value in keys.items():
        if (place := _place(default, key)) is not None and not isinstance(value, list) and (value or key not in OFF):
            values[place] = value
    if heads := keys.get("attention.head_count"):  # llama.cpp's own defaults
        missing = {"attention.head_count_kv": heads, "attention.key_length": int(keys["embedding_length"]) // heads}
        places = {_place(default, key): value for key, value in missing.items() if key not in keys}
        values |= {place: value for place, value in places.items() if place is not None and place not in values}
    values |= {at: any(n.endswith(end) for n in tensors) for at, end in BY_TENSORS.items() if hasattr(default, at)}
    try:
        config = CONFIG_MAPPING[kind](**values)
    except Exception as error:  # each config checks its own fields
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{name} is no {kind} model that transformers knows: {reason}") from error
    for key, value in keys.items():
        if key in HARMLESS or key in ROTATION or (key in OFF and not value) or _is_honoured(config, key, value):
            continue
        raise ValueError(
            f"{name} says {architecture}.{key} = {_short(value)}, which cannot be honoured for a {kind} model here; "
            "take the model's own folder"
        )
    rotate(config, keys, f"{name} ({kind})")
    return config


def _kind(kind: str, keys: Mapping[str, Any], tensors: Set[str]) -> str:
    """The file does not say that each layer of UMT5 has a table of distances of its own."""
    each = "enc.blk.1.attn_rel_b.weight" in tensors
    return "umt5" if kind == "t5" and each else kind


def _of_its_kind(kind: str, keys: Mapping[str, Any], tensors: Set[str]) -> dict[str, Any]:
    """What follows from the architecture, not from one key."""
    if kind in ("t5", "umt5"):  # llama.cpp's src/models/t5.cpp: GELU where there are gates, ReLU where not
        gated = any(name.startswith("enc.") and name.endswith("ffn_gate.weight") for name in tensors)
        return {"feed_forward_proj": "gated-gelu" if gated else "relu"}
    if kind in ("gemma2", "gemma3_text"):
        width, heads = int(keys["embedding_length"]), int(keys["attention.head_count"])
        whole = int(keys["block_count"]) in _27B
        return {"query_pre_attn_scalar": width // heads if whole else int(keys["attention.key_length"])}
    if kind == "lfm2":  # no key heads where a layer is a convolution
        heads = keys["attention.head_count_kv"]
        heads = [int(count) for count in heads] if isinstance(heads, list) else [int(heads)] * int(keys["block_count"])
        full = [i for i, count in enumerate(heads) if count]
        return {"num_key_value_heads": max(heads), "full_attn_idxs": full, "block_auto_adjust_ff_dim": False}
    if kind == "qwen3_moe":  # llama.cpp's src/models/qwen3moe.cpp
        return {"norm_topk_prob": True}
    return {}


def _place(config: Any, key: str) -> str | None:
    """The argument of the config's class that holds what ``key`` says; None where there is none."""
    found = next((name for name in ATTRIBUTES.get(key, ()) if hasattr(config, name)), None)
    if found is None or isinstance(getattr(type(config), found, None), property):
        return None
    return config.attribute_map.get(found, found)


def _is_honoured(config: Any, key: str, value: Any) -> bool:
    """Whether the config says the same as the key, once it was given what it has a place for."""
    if key == "attention.sliding_window":
        return _window(config, value)
    if key == "attention.sliding_window_pattern":
        return _pattern(config, value)
    if key == "attention.causal":
        return bool(value) != (config.model_type in ("t5", "umt5"))
    if key == "attention.head_count_kv" and isinstance(value, list):
        value = max(value) if config.model_type == "lfm2" or len(set(value)) == 1 else None
    found = next((name for name in ATTRIBUTES.get(key, ()) if hasattr(config, name)), None)
    if found is not None and getattr(config, found) == value:
        return True
    if key == "attention.head_count_kv":
        return value == config.num_attention_heads or (value == 1 and getattr(config, "multi_query", False))
    if key == "attention.key_length":
        return found is None and value == config.hidden_size // config.num_attention_heads
    return found is None and key in NO_PLACE


def _window(config: Any, value: Any) -> bool:
    """0 = none."""
    if hasattr(config, "use_sliding_window") or not hasattr(config, "sliding_window"):
        return not value or value >= getattr(config, "max_position_embeddings", 0)
    config.sliding_window = int(value) or None
    return True


def _pattern(config: Any, value: Any) -> bool:
    """Which layers look at the window alone: one in so many does not, or a flag for each layer."""
    count = config.num_hidden_layers
    flags = value if isinstance(value, list) else [(i + 1) % int(value) != 0 for i in range(count)]
    if not hasattr(config, "layer_types") or len(flags) != count:
        return False
    config.layer_types = ["sliding_attention" if flag else "full_attention" for flag in flags]
    return True


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 40 else f"{text[:40]}..."
