"""Rotary positions as a GGUF file has them: base, rotated share and scaling by its keys, factors by its tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

ROTATION = {
    *("rope.freq_base", "rope.freq_base_swa", "rope.dimension_count", "rope.dimension_count_swa"),
    *("rope.scale_linear", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.attn_factor"),
    *("rope.scaling.original_context_length", "rope.scaling.finetuned", "rope.scaling.yarn_ext_factor"),
    *("rope.scaling.yarn_attn_factor", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"),
    *("rope.scaling.yarn_log_multiplier",),
}
FREQUENCIES, SHORT, LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
# What llama.cpp multiplies the cosines by beside YaRN's own factor; 1 = nothing is asked for.
_ONES = ("rope.scaling.yarn_ext_factor", "rope.scaling.yarn_attn_factor")
# The bounds of Llama 3.1's scaling, of which a file holds what it makes of them.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def rotate(config: Any, keys: Mapping[str, Any], name: str) -> None:
    """Set what the keys say. Raises ValueError for what the config has no place for."""
    if not any(key in ROTATION for key in keys):
        return
    base = keys.get("rope.freq_base")
    if base is not None:
        _put(config, {"rope_theta": float(base)}, "full_attention")
    if (local := keys.get("rope.freq_base_swa")) is not None:
        if not _layered(config) and not hasattr(config, "rope_local_base_freq"):
            raise ValueError(f"{name} has another rotary base for some layers; take the model's own folder")
        _put(config, {"rope_theta": float(local)}, "sliding_attention")
    for key in ("rope.dimension_count", "rope.dimension_count_swa"):
        if key in keys:
            _rotated(config, int(keys[key]), name)
    if base is not None and not base > 0:
        raise ValueError(f"{name} has a rotary base of {base}, which must be above 0; fetch it again")
    odd = next((key for key in _ONES if keys.get(key, 1.0) not in (1.0, -1.0)), None)
    if odd is None and keys.get("rope.scaling.yarn_log_multiplier"):
        odd = "rope.scaling.yarn_log_multiplier"
    kind = keys.get("rope.scaling.type", "linear")
    if odd is None and kind == "yarn" and not float(keys.get("rope.scaling.factor", 0.0)) > 0:
        odd = "yarn without a factor"
    scaling = {} if odd else _scaling(config, keys)
    kind = keys.get("rope.scaling.type", "linear" if scaling else "none")
    if odd is not None or (kind not in ("none", "longrope") and scaling is None):
        raise ValueError(
            f"{name} scales its rotary positions by {odd or kind!r}, which is not read here; take its own folder"
        )
    if scaling:
        _put(config, scaling, "full_attention")


def _scaling(config: Any, keys: Mapping[str, Any]) -> dict[str, Any] | None:
    """None: of a kind that is not known here; {}: by nothing."""
    factor = float(keys.get("rope.scaling.factor", keys.get("rope.scale_linear", 0.0)))
    kind = keys.get("rope.scaling.type", "linear")
    if kind == "linear":  # llama.cpp takes a factor of 0 for none
        return {"rope_type": "linear", "factor": factor} if factor not in (0.0, 1.0) else {}
    if kind == "yarn":
        first = keys.get("rope.scaling.original_context_length", config.max_position_embeddings)
        values: dict[str, Any] = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": int(first)}
        for key in ("beta_fast", "beta_slow"):
            if (value := keys.get(f"rope.scaling.yarn_{key}", -1.0)) != -1.0:
                values[key] = float(value)
        if "rope.scaling.attn_factor" in keys:  # llama.cpp: beside YaRN's own
            values["attention_factor"] = float(keys["rope.scaling.attn_factor"]) * (1 + 0.1 * math.log(factor))
        return values
    return None


def factors(config: Any, keys: Mapping[str, Any], found: Mapping[str, Sequence[float]], name: str) -> None:
    """Set what the tensors say that divide the frequencies of each pair of channels.

    found: FREQUENCIES (Llama 3.1: one row for all lengths), or SHORT and LONG (Phi-3, LongRoPE arXiv 2402.13753).
    Raises ValueError for one that is missing, and for another scaling beside them.
    """
    said, pair = keys.get("rope.scaling.type", "none"), (SHORT in found, LONG in found)
    row = found.get(FREQUENCIES)
    plain = row is None or all(value == 1 for value in row)
    lone = keys.get("rope.scaling.attn_factor", 1.0) != 1.0 and said != "yarn" and not all(pair)
    alone = any(pair) != all(pair) or (said == "longrope" and not all(pair))
    if lone or alone or (said in ("linear", "yarn") and not plain):
        tensors = ", ".join(found) or "none"
        raise ValueError(
            f"{name} scales its rotary positions by {said!r} and by tensors ({tensors}), which do not go together; "
            "take its own folder"
        )
    if row is not None and not plain:
        _put(config, _llama3(config, row) or _longrope(row, row, config.max_position_embeddings, 1.0), "full_attention")
    if all(pair):
        first = int(keys.get("rope.scaling.original_context_length", config.max_position_embeddings))
        values = _longrope(found[SHORT], found[LONG], first, keys.get("rope.scaling.attn_factor"))
        _put(config, values, "full_attention")
        if hasattr(config, "original_max_position_embeddings"):
            config.original_max_position_embeddings = first


def _longrope(short: Sequence[float], long: Sequence[float], first: int, factor: float | None) -> dict[str, Any]:
    values = {"rope_type": "longrope", "short_factor": list(short), "long_factor": list(long)}
    more = {} if factor is None else {"attention_factor": float(factor)}
    return {**values, "original_max_position_embeddings": first, **more}


def _llama3(config: Any, row: Sequence[float]) -> dict[str, Any] | None:
    """The same as Llama 3.1's own parameters, where it is that; so that the file is known as a copy of its folder."""
    base, count, factor = _base(config), len(row), max(row)
    if base is None:
        return None
    low = LLAMA3["original_max_position_embeddings"] / LLAMA3["low_freq_factor"]
    high = LLAMA3["original_max_position_embeddings"] / LLAMA3["high_freq_factor"]
    for i, found in enumerate(row):
        length = 2 * math.pi * base ** (i / count)
        smooth = (low * LLAMA3["low_freq_factor"] / length - LLAMA3["low_freq_factor"]) / (
            LLAMA3["high_freq_factor"] - LLAMA3["low_freq_factor"]
        )
        expected = 1.0 if length < high else factor if length > low else 1 / ((1 - smooth) / factor + smooth)
        if not math.isclose(found, expected, rel_tol=1e-4):
            return None
    return {"rope_type": "llama3", "factor": float(factor), **LLAMA3}


def _layered(config: Any) -> bool:
    """Whether layers of different kinds have rotations of their own (Gemma 3 from transformers 5 on)."""
    return "full_attention" in (getattr(config, "rope_parameters", None) or {})


def _base(config: Any) -> float | None:
    found = getattr(config, "rope_parameters", None)
    return (found or {}).get("rope_theta") if found is not None else getattr(config, "rope_theta", None)


def _put(config: Any, values: Mapping[str, Any], kind: str) -> None:
    """kind: of the layers, where they differ."""
    found = getattr(config, "rope_parameters", None)
    if found is not None:  # from transformers 5 on
        config.rope_parameters = {**found, kind: {**found[kind], **values}} if _layered(config) else {**found, **values}
        return
    if "rope_theta" in values:
        setattr(config, "rope_theta" if kind == "full_attention" else "rope_local_base_freq", values["rope_theta"])
    else:
        config.rope_scaling = dict(values)


def _rotated(config: Any, count: int, name: str) -> None:
    """How many channels of each head are rotated."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    found = getattr(config, "rope_parameters", None) or {}
    if "partial_rotary_factor" in found:
        config.rope_parameters = {**found, "partial_rotary_factor": count / width}
    elif hasattr(config, "partial_rotary_factor"):
        config.partial_rotary_factor = count / width
    elif count != width:
        raise ValueError(
            f"{name} rotates {count} of the {width} channels of a head, which transformers knows for no such model; "
            "take the model's own folder"
        )
