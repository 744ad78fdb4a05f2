"""GGUF files of tiny models of many architectures, with the keys, names and changes that llama.cpp's converter makes.

Compared with what convert_hf_to_gguf.py of August 2025 writes of the same folders: the same keys and tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .gguf_files import _closed, _tokenizer, permute

TIED = ("lm_head.weight", "encoder.embed_tokens.weight")  # the file holds them once
Change = Callable[[str, np.ndarray, Any], np.ndarray]


def _llama(name: str, values: np.ndarray, config: Any) -> np.ndarray:
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = next((heads[part] for part in heads if f".{part}." in name), None)
    if count is None:
        return values
    return permute(values.reshape(len(values), -1), count).reshape(values.shape)


def _one_more(name: str, values: np.ndarray, config: Any) -> np.ndarray:
    return values + 1 if name.endswith("norm.weight") else values


def _gpt2(name: str, values: np.ndarray, config: Any) -> np.ndarray:
    mapped = name.endswith(("c_attn.weight", "c_fc.weight", "c_proj.weight"))
    return np.ascontiguousarray(values.T) if mapped else values


def _mamba(name: str, values: np.ndarray, config: Any) -> np.ndarray:
    return -np.exp(values) if name.endswith("A_log") else values.squeeze(1) if "conv1d.weight" in name else values


CHANGES: dict[str, Change] = {
    "llama": _llama,
    "gemma2": _one_more,
    "gemma3": _one_more,
    "gpt2": _gpt2,
    "mamba": _mamba,
}


def write_gguf(
    path: Path,
    folder: Path,
    model: Any,
    architecture: str,
    keys: Mapping[str, Any],
    more: Mapping[str, np.ndarray] | None = None,
    without: tuple[str, ...] = (),
) -> Path:
    """``model`` (of transformers, with its head) as a file of this architecture; folder: of its tokenizer.

    keys: under the architecture's name. more: tensors by their names in the file. without: ends of names left out.
    """
    import gguf

    kind = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    config = model.config
    count = getattr(config, "num_hidden_layers", None) or config.num_layers
    names = gguf.get_tensor_name_map(kind, count)
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_name(path.stem)
    _tokenizer(writer, folder)
    for key, value in {"block_count": count, "embedding_length": config.hidden_size, **keys}.items():
        _add(writer, f"{architecture}.{key}", value)
    change = CHANGES.get(architecture, lambda name, values, config: values)
    written: dict[str, np.ndarray] = {}
    for name, tensor in model.state_dict().items():
        if name in TIED or name.endswith(without or ("\0",)):
            continue
        for file_name, values in _in_file(name, tensor.float().numpy(), names).items():
            written[file_name] = change(name, values, config)
    for name, values in {**written, **(more or {})}.items():
        writer.add_tensor(name, values)
    return _closed(writer, path)


def _in_file(name: str, values: np.ndarray, names: Any) -> dict[str, np.ndarray]:
    """llama.cpp keeps the halves of a fused map of experts apart."""
    if name.endswith("experts.gate_up_proj"):
        block = names.get_name(name.replace("gate_up_proj", "down_proj")).removesuffix("ffn_down_exps")
        halves = np.split(values, 2, axis=1)
        return {f"{block}ffn_{part}_exps.weight": half for part, half in zip(("gate", "up"), halves, strict=True)}
    if (whole := names.get_name(name)) is not None:
        return {f"{whole}.weight" if "exps" in whole else whole: values}
    bare, _, end = name.rpartition(".")
    known = names.get_name(bare)
    assert known is not None, f"llama.cpp has no name for {name}"
    return {f"{known}.{end}": values}


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
