"""Tiny random models of every language family of transformers: its own default config, each size made small by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .tiny_sizes import HEADS, LAYERS, SIZES, SPECIAL, ZEROED

LIMIT = 30_000_000  # parameters; what is larger was not made small
_KEPT_LISTS = ("architectures",)


def tiny_config(model_type: str, vocabulary: int) -> Any:
    """A transformers config of a few layers, 32 wide, with the ids of the tests' tokenizer.

    Raises what the config's class raises.
    """
    import transformers as hf

    kind: Any = hf.CONFIG_MAPPING[model_type]
    data = kind().to_dict()
    made = _merge(_shrunk(data, vocabulary), SPECIAL.get(model_type, {}))
    return kind.from_dict(made)


def _shrunk(data: dict[str, Any], vocabulary: int) -> dict[str, Any]:
    layers = next((data[n] for n in ("num_hidden_layers", "num_layers", "n_layer") if isinstance(data.get(n), int)), 0)
    chosen = _chosen_layers(data, layers)
    heads = next((data[n] for n in ("num_attention_heads", "num_heads") if isinstance(data.get(n), int)), 0)
    small: dict[str, Any] = {}
    for name, value in data.items():
        if name == "per_layer_config" and isinstance(value, dict):
            kept = {int(key): part for key, part in value.items()}
            small[name] = {str(i): _shrunk(kept[old], vocabulary) for i, old in enumerate(chosen) if old in kept}
        elif isinstance(value, dict):
            small[name] = _shrunk(value, vocabulary) if "model_type" in value else _with_few_axes(value, data)
        elif isinstance(value, list) and len(value) == layers > LAYERS and name not in _KEPT_LISTS:
            of_a_layer = [value[i] for i in chosen]
            size = SIZES.get(name)
            small[name] = of_a_layer if size is None else [size for _ in of_a_layer]
        elif name in ("vocab_size", "vocab_size_per_layer_input", "unpadded_vocab_size"):
            small[name] = vocabulary
        elif name == "num_key_value_heads" and isinstance(value, int) and value == heads:
            small[name] = HEADS
        elif isinstance(value, int) and not isinstance(value, bool) and name in SIZES:
            small[name] = len(chosen) if SIZES[name] == LAYERS and value == layers else min(value, SIZES[name])
        elif re.fullmatch(r"(pad|bos|eos)_token_id", name):
            small[name] = {"pad": 0, "bos": 1, "eos": 2}[name[:3]]
        elif name.endswith(("token_id", "token_index")) and isinstance(value, int) and value >= vocabulary:
            small[name] = vocabulary - 1 - sum(1 for other in small if other.endswith(("token_id", "token_index")))
        else:
            small[name] = value
    return small


def _with_few_axes(rotary: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """Rotary parameters, with the sections of the three axes in the proportion that the heads were made smaller."""
    made = dict(rotary)
    for name, value in rotary.items():
        if isinstance(value, dict):
            made[name] = _with_few_axes(value, data)
    sections = rotary.get("mrope_section")
    if isinstance(sections, list):
        width = (
            data.get("qk_rope_head_dim") or data.get("head_dim") or data["hidden_size"] // data["num_attention_heads"]
        )
        half = max(1, sum(sections) * 8 // width)
        made["mrope_section"] = [half - 2 * (half // 3), half // 3, half // 3]
    return made


def _chosen_layers(data: dict[str, Any], count: int) -> list[int]:
    """Of ``count`` layers the ones that are kept: one of each kind that the config tells apart, at least LAYERS."""
    lists = [v for k, v in data.items() if isinstance(v, list) and len(v) == count > LAYERS and k not in _KEPT_LISTS]
    if data.get("per_layer_config"):
        own = {int(key): str(part) for key, part in data["per_layer_config"].items()}
        lists.append([own.get(i, "") for i in range(count)])
    kinds = list(zip(*([str(x) for x in v] for v in lists), strict=True)) if lists else [()] * max(count, LAYERS)
    firsts = list({kind: i for i, kind in reversed(list(enumerate(kinds)))}.values())
    firsts = sorted(firsts)[: 2 * LAYERS]
    others = [i for i in range(len(kinds)) if i not in firsts]
    return sorted(firsts + others[: max(0, LAYERS - len(firsts))])


def _merge(data: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    for name, value in changes.items():
        data[name] = _merge(data.get(name) or {}, value) if isinstance(value, dict) else value
    return data


def tiny_model(model_type: str, vocabulary: int, head: bool = False) -> Any:
    """A model of that config with random weights, seeded, in float32 and eval mode.

    Raises ValueError for one that is not small, and what the model's class raises.
    """
    import transformers as hf

    config = tiny_config(model_type, vocabulary)
    loaders: tuple[Any, ...] = (hf.AutoModel, hf.AutoModelForTextEncoding)
    heads: tuple[Any, ...] = (hf.AutoModelForSeq2SeqLM, hf.AutoModelForImageTextToText, hf.AutoModelForMultimodalLM)
    heads += (hf.AutoModelForCausalLM, hf.AutoModelForMaskedLM)
    fitting = [
        one for one in ((*heads, *loaders) if head else (*loaders, *heads)) if type(config) in one._model_mapping
    ]
    if not fitting:
        raise ValueError(f"transformers has no model class for {model_type}")
    model: Any = None
    for loader in fitting:
        try:
            model = _small(loader, config)
            break
        except Exception:  # with another head it may be made
            if loader is fitting[-1]:
                raise
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and parameter.is_floating_point():  # transformers' 0.02 makes a layer the identity
                parameter.normal_(std=0.2)
        for module in model.modules() if model_type in ZEROED else ():
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx] = 0
    return model


def _small(loader: Any, config: Any) -> nn.Module:
    with suppress(RuntimeError), torch.device("meta"):  # some make their weights by what has no values there
        count = sum(p.numel() for p in loader.from_config(config).parameters())
        if count > LIMIT:
            raise ValueError(f"the tiny {config.model_type} has {count} parameters, more than {LIMIT}")
    torch.manual_seed(0)
    return loader.from_config(config).eval()


def tiny_folders(tmp_path_factory: Any) -> Callable[[str], Path]:
    """model_type -> a folder of the tiny model with its head, as publishers save it, and a tokenizer; made once."""
    from ..conftest import write_tokenizer

    @cache
    def make(model_type: str) -> Path:
        path = tmp_path_factory.mktemp(model_type)
        tiny_model(model_type, len(write_tokenizer(path)), head=True).save_pretrained(path)
        return path

    return make
