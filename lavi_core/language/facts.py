"""What shapes a language model's states beside its weights' signs: facts of config and tokenizer, sizes of weights.

A bridge records them beside the fingerprint, so that a model that was changed (another rope_theta, no end token, scaled
projections) is told from the one it was trained with. Facts that only one side knows are passed over: libraries name
and keep them differently from version to version.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

# Names in config.json, the same fact on one line.
NAMES: Mapping[str, tuple[str, ...]] = {
    "heads": ("num_attention_heads", "num_heads", "n_head", "encoder_attention_heads", "n_heads"),
    "key-value heads": ("num_key_value_heads",),
    "head width": ("head_dim", "d_kv"),
    "norm epsilon": ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps"),
    "activation": ("hidden_act", "hidden_activation", "activation_function", "dense_act_fn", "activation"),
    "gated": ("is_gated_act",),
    "sliding window": ("sliding_window",),
    "attention softcap": ("attn_logit_softcapping",),
    "query scale": ("query_pre_attn_scalar",),
    "relative buckets": ("relative_attention_num_buckets",),
    "relative distance": ("relative_attention_max_distance",),
    "position embedding": ("position_embedding_type",),
    "rotated share": ("partial_rotary_factor", "rotary_pct"),
    "embedding factor": ("embedding_multiplier",),
    "residual factor": ("residual_multiplier",),
    "attention factor": ("attention_multiplier",),
}
PROBES = ("a red circle", "Two dogs, 3.5 m apart!")
SAME = 1e-3  # relative difference of two numbers of one config
TINY = 1e-6  # what float16 or float8 may take for zero
CLOSE = 0.06  # of two sizes of weights: 4-bit blocks keep them within 0.3 %, seen on random weights


def config_facts(config: Any) -> dict[str, Any]:
    """Plain numbers, words and flags out of a transformers config."""
    facts: dict[str, Any] = {}
    for fact, names in NAMES.items():
        found = next((value for name in names if (value := _of_all_layers(config, name)) is not None), None)
        if isinstance(found, bool | int | float | str):
            facts[fact] = found
    return facts | _rotation(config)


def _of_all_layers(config: Any, name: str) -> Any:
    """None for an attribute that is not there, and for one that layers have each their own of, which transformers
    refuses to give by an error of its own."""
    try:
        return getattr(config, name, None)
    except Exception:
        return None


def _rotation(config: Any) -> dict[str, Any]:
    """transformers 5 keeps rotary positions in rope_parameters, versions before in rope_theta and rope_scaling."""
    found = getattr(config, "rope_parameters", None)
    if not isinstance(found, Mapping):
        theta, scaling = getattr(config, "rope_theta", None), getattr(config, "rope_scaling", None)
        if theta is None:
            return {}
        found = {"rope_theta": theta, **(scaling if isinstance(scaling, Mapping) else {})}
    kinds: Mapping[str, Any] = {"": found}
    if any(isinstance(value, Mapping) for value in found.values()):
        # By kind of layer; a Gemma's config may have beside them what is not.
        kinds = {kind: values for kind, values in found.items() if values is None or isinstance(values, Mapping)}
    facts: dict[str, Any] = {}
    for kind, values in kinds.items():
        suffix = f" of {kind}" if kind else ""
        values = {"rope_type": "default", **({} if values is None else values)}
        values["rope_type"] = values.pop("type", values["rope_type"])
        facts |= {f"{k}{suffix}": v for k, v in values.items() if isinstance(v, bool | int | float | str)}
    return facts


def stretched_beyond(config: Any) -> int | None:
    """The length beyond which a row of tokens turns all positions otherwise, padding and company counted (longrope);
    None = there is none."""
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if not isinstance(found, Mapping):
        return None
    kinds = [values for values in (found, *found.values()) if isinstance(values, Mapping)]
    if not any(values.get("rope_type", values.get("type")) == "longrope" for values in kinds):
        return None
    name = "original_max_position_embeddings"
    lengths = (*(values.get(name) for values in kinds), getattr(config, name, None))
    return next((length for length in lengths if isinstance(length, int)), None)


def whole_attention_up_to(model: Any) -> int | None:
    """The most tokens that a BigBird attends to in full: beyond, to blocks of them, until a shorter row is read, from
    which on transformers (5.24) attends in full for good. None = it never attends to blocks."""
    config = model.config
    if getattr(config, "attention_type", None) != "block_sparse":
        return None
    return (5 + 2 * config.num_random_blocks) * config.block_size


def token_facts(tokenizer: Any) -> dict[str, Any]:
    """The token ids of two short texts, special tokens included."""
    return {"tokens": "; ".join(" ".join(map(str, tokenizer(text)["input_ids"])) for text in PROBES)}


def differing(ours: Mapping[str, Any] | None, theirs: Mapping[str, Any] | None) -> tuple[str, Any, Any] | None:
    """The first fact in which two models differ, and both values; None where they agree in all that both record."""
    for fact in sorted((ours or {}).keys() & (theirs or {}).keys()):
        a, b = (ours or {})[fact], (theirs or {})[fact]
        if fact == "weights":
            if (odd := _differing_sizes(a, b)) is not None:
                return "size of a weight", *odd
        elif not _alike(a, b):
            return fact, a, b
    return None


def _alike(a: Any, b: Any) -> bool:
    numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in (a, b))
    return math.isclose(a, b, rel_tol=SAME) if numbers else a == b


def _differing_sizes(a: Sequence[float], b: Sequence[float]) -> tuple[float, float] | None:
    """Of root mean squares in their order. Another number of them tells nothing: some libraries join matrices."""
    if len(a) != len(b):
        return None
    return next(
        ((x, y) for x, y in zip(a, b, strict=True) if not math.isclose(x, y, rel_tol=CLOSE, abs_tol=TINY)), None
    )
