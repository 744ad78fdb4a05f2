"""What a GGUF file says of its model beside the tensors: transformers' config of it, completed and held to every key.

transformers 5.24 reads some keys and leaves the rest at its defaults without a word (the scaling of rotary positions,
biases, widths of heads). Here each key under the architecture's name is honoured, is known to shape no hidden state, or
is refused. Keys: gguf's constants.py; what they mean: llama.cpp's src/llama-model.cpp and convert_hf_to_gguf.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from .gguf_rotation import ROTATION, rotate

# Sizes that the tensors' shapes hold the model to, and what only logits or other tools depend on.
HARMLESS = {
    *("vocab_size", "embedding_length", "block_count", "feed_forward_length", "attention.value_length"),
    *("tensor_data_layout", "pooling_type"),
    *("logit_scale", "final_logit_softcapping", "decoder_start_token_id", "decoder_block_count"),
    *("ssm.conv_kernel", "ssm.inner_size", "ssm.state_size", "ssm.time_step_rank", "shortconv.l_cache"),
}
# key -> names of the same in configs: the first that a config has is set.
ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads", "num_kv_heads"),
    "attention.key_length": ("d_kv", "head_dim"),
    "attention.relative_buckets_count": ("relative_attention_num_buckets",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "use_parallel_residual": ("use_parallel_residual",),
    "expert_count": ("num_experts", "num_local_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "expert_weights_norm": ("norm_topk_prob",),
}
EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon")
# Of no matter where they are zero.
OFF = ("ssm.dt_b_c_rms", "nextn_predict_layers", "expert_count", "expert_used_count", "attention.head_count")
# A part of a config -> an end of a tensor's name that shows it is there.
BY_TENSORS = {"attention_bias": "attn_q.bias", "mlp_bias": "ffn_down.bias"}
_27B = (46, 62)  # layers of Gemma 2 and Gemma 3 of 27 B, which scale their queries by another width than the heads'


def complete(config: Any, architecture: str, keys: Mapping[str, Any], tensors: Iterable[str], name: str) -> Any:
    """``config`` as transformers read it, with what its tables omit.

    keys: those of the file under its architecture's name, without it. name: of the file, for messages.
    Raises ValueError, in one sentence, for a key that a hidden state may depend on and that is not honoured.
    """
    held = set(tensors)
    config = _kind(config, held)
    if (pad := getattr(config, "pad_token_id", None)) is not None and pad >= config.vocab_size:
        config.pad_token_id = None  # the default of its class, for another vocabulary
    for attribute, end in BY_TENSORS.items():
        if hasattr(config, attribute):
            setattr(config, attribute, any(tensor.endswith(end) for tensor in held))
    if architecture == "falcon" and int(keys.get("attention.head_count_kv", 1)) > 1:
        raise ValueError(
            f"{name} is a Falcon of several key heads, whose fused weights llama.cpp stores in another order; take "
            "the model's own folder"
        )
    for key, value in keys.items():
        if key in HARMLESS or key in ROTATION or (key in OFF and not value):
            continue
        if not _SPECIAL.get(key, _set)(config, key, value):
            raise ValueError(
                f"{name} says {architecture}.{key} = {_short(value)}, which cannot be honoured for a "
                f"{config.model_type} model here; take the model's own folder"
            )
    rotate(config, keys, f"{name} ({config.model_type})")
    if config.model_type in ("gemma2", "gemma3_text"):
        whole = config.hidden_size // config.num_attention_heads
        config.query_pre_attn_scalar = whole if config.num_hidden_layers in _27B else config.head_dim
    return config


def _kind(config: Any, tensors: set[str]) -> Any:
    """A T5 as its tensors show it: the file says neither whether it has gates, nor that each layer of UMT5 has a table
    of distances of its own."""
    if config.model_type not in ("t5", "umt5"):
        return config
    gated = any(name.endswith("ffn_gate.weight") and name.startswith("enc.") for name in tensors)
    # llama.cpp's src/models/t5.cpp: GELU where there are gates, ReLU where not
    config.update({"is_gated_act": gated, "dense_act_fn": "gelu_new" if gated else "relu"})
    each = "enc.blk.1.attn_rel_b.weight" in tensors
    if config.num_layers > 1 and each != (config.model_type == "umt5"):
        from transformers import T5Config, UMT5Config

        values = {key: value for key, value in config.to_dict().items() if key not in ("model_type", "architectures")}
        return (UMT5Config if each else T5Config)(**values)
    return config


def _set(config: Any, key: str, value: Any) -> bool:
    """Whether the config has a place for it, which then holds it."""
    if isinstance(value, list):  # one for each layer
        if len(set(value)) > 1:
            return False
        value = value[0]
    found = next((name for name in ATTRIBUTES.get(key, ()) if hasattr(config, name)), None)
    if found is None:
        return False
    with suppress(AttributeError):  # reckoned from others
        setattr(config, found, value)
    return getattr(config, found) == value


def _context(config: Any, key: str, value: Any) -> bool:
    for name in ("max_position_embeddings", "n_positions"):
        if hasattr(config, name):
            setattr(config, name, int(value))
    return True  # a model without a table of positions


def _epsilon(config: Any, key: str, value: Any) -> bool:
    found = next((name for name in EPSILONS if hasattr(config, name)), None)
    if found is not None:
        setattr(config, found, float(value))
    return found is not None


def _key_heads(config: Any, key: str, value: Any) -> bool:
    if config.model_type == "lfm2":  # none where a layer is a convolution; transformers reads that
        return config.num_key_value_heads == max(value)
    single = value == 1 and getattr(config, "multi_query", False)
    return _set(config, key, value) or single or value == config.num_attention_heads


def _key_length(config: Any, key: str, value: Any) -> bool:
    return _set(config, key, value) or value == config.hidden_size // config.num_attention_heads


def _window(config: Any, key: str, value: Any) -> bool:
    """0 = none."""
    if hasattr(config, "use_sliding_window") or not hasattr(config, "sliding_window"):
        return not value or value >= getattr(config, "max_position_embeddings", 0)
    config.sliding_window = int(value) or None
    return True


def _pattern(config: Any, key: str, value: Any) -> bool:
    """Which layers look at the window alone: one in so many does not, or a flag for each layer."""
    count = config.num_hidden_layers
    flags = value if isinstance(value, list) else [(i + 1) % int(value) != 0 for i in range(count)]
    if not hasattr(config, "layer_types") or len(flags) != count:
        return False
    config.layer_types = ["sliding_attention" if flag else "full_attention" for flag in flags]
    return True


def _causal(config: Any, key: str, value: Any) -> bool:
    return bool(value) != (config.model_type in ("t5", "umt5"))


_SPECIAL: Mapping[str, Callable[[Any, str, Any], bool]] = {
    "context_length": _context,
    "attention.layer_norm_epsilon": _epsilon,
    "attention.layer_norm_rms_epsilon": _epsilon,
    "attention.head_count_kv": _key_heads,
    "attention.key_length": _key_length,
    "attention.sliding_window": _window,
    "attention.sliding_window_pattern": _pattern,
    "attention.causal": _causal,
}


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 40 else f"{text[:40]}..."
