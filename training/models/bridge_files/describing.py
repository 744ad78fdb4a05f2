"""What a bridge file is, as plain data and as text for a person."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from torch import Tensor

from ....lavi_core.adapters import ADAPTERS, OPTIONS
from ....lavi_core.checkpoint import BridgeCheckpoint
from ....lavi_core.config import LoRAConfig
from ....lavi_core.lora import LoRA
from ...recipe import Recipe

UNITS = ("B", "kB", "MB", "GB")


def describe(path: str | Path) -> dict[str, Any]:
    """The bridge's config, and what its tensors add to it: parameters, sites, dtypes; plain data."""
    checkpoint = BridgeCheckpoint.load(path)
    facts = {"file": str(path), "bytes": Path(path).stat().st_size} | asdict(checkpoint.config)
    facts["adapter"] |= _tensors(checkpoint.adapter.values())
    if checkpoint.config.adapter.layers is not None:
        weights = checkpoint.adapter["layer_mean.logits"].double().softmax(0)
        facts["adapter"]["layer_weights"] = [round(weight, 5) for weight in weights.tolist()]
    facts["language_lora"] = _lora(checkpoint.config.language_lora, checkpoint.language_lora)
    facts["vision_lora"] = _lora(checkpoint.config.vision_lora, checkpoint.vision_lora)
    return facts


def readable(facts: dict[str, Any]) -> str:
    """The same facts for a person, one line each."""
    language, vision, adapter = facts["language"], facts["vision"], facts["adapter"]
    widths = " -> ".join(str(adapter[key]) for key in ("in_width", "inner_width", "out_width"))
    other = "" if vision["other_pooled"] is None else f", another encoder's pooled {vision['other_pooled']}"
    pooled = "" if adapter["pooled_width"] is None else f", pooled {adapter['pooled_width']}"
    lines = [
        ("file", f"{facts['file']}, {_size(facts['bytes'])}, schema {facts['schema']}"),
        (
            "language model",
            f"{language['model_id']} ({language['family']}): {language['num_layers']} layers, hidden "
            f"{language['hidden_size']}, vocabulary {language['vocab_size']}",
        ),
        ("  fingerprint", _fingerprint(language["fingerprint"])),
        ("  LoRA", _lora_line(facts["language_lora"])),
        ("prompt", ""),
        *_nested(facts["prompt"]),
        ("adapter", f"{adapter['kind']}, {widths}{pooled}: {_parameters(adapter)}"),
        *_adapter_lines(adapter),
        *_own_encoder(facts["own_encoder"]),
        ("vision model", f"{vision['model_id']} ({vision['target']}): context width {vision['context_width']}{other}"),
        ("  fingerprint", _fingerprint(vision["fingerprint"])),
        ("  LoRA", _lora_line(facts["vision_lora"])),
        ("  objective", vision["objective"]),
        ("  latents", f"{vision['latent_channels']} channels, scale {vision['latent_scale']:g}"),
        ("provenance", "" if facts["provenance"] else "none"),
        *_nested(_chosen(facts["provenance"])),
    ]
    return "\n".join(f"{key:<21} {value}".rstrip() for key, value in lines)


def _adapter_lines(adapter: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    given = [f"{name.replace('_', ' ')} {_value(adapter[name])}" for name in OPTIONS if adapter[name] is not None]
    if given:
        yield "  options", ", ".join(given)
    if adapter["layers"] is not None:
        weights = adapter["layer_weights"]
        yield "  layers", f"a mean of {adapter['layers']}, weights {', '.join(f'{weight:.3f}' for weight in weights)}"
    if ADAPTERS[adapter["kind"]].hears_timestep:
        yield "  timestep", "heard: the context is made anew at each step"


def _own_encoder(own: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    if own is None:
        return
    names = " and ".join(f"{one['model_id']} ({one['family']}, hidden {one['hidden_size']})" for one in own["encoders"])
    pooled = "" if own["pooled_width"] is None else f", and pooled {own['pooled_width']}"
    yield "own encoder", f"{names}: {own['prompt']['max_length']} tokens {own['place']} the bridge's{pooled}"
    for one in own["encoders"]:
        yield "  fingerprint", _fingerprint(one["fingerprint"])


def _chosen(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Without what its recipe leaves as it is by default."""
    recipe = provenance.get("recipe")
    if not isinstance(recipe, Mapping):
        return dict(provenance)
    rest = {key: value for key, value in provenance.items() if key != "recipe"}
    return {"recipe, no defaults": _unlike_default(recipe, Recipe)} | rest


def _unlike_default(values: Mapping[str, Any], section: type) -> dict[str, Any]:
    sections = {
        name: hint for name, hint in get_type_hints(section).items() if isinstance(hint, type) and is_dataclass(hint)
    }
    defaults = {
        one.name: one.default if one.default_factory is MISSING else one.default_factory() for one in fields(section)
    }
    kept: dict[str, Any] = {}
    for key, value in values.items():
        if key in sections and isinstance(value, Mapping):
            if chosen := _unlike_default(value, sections[key]):
                kept[key] = chosen
        elif key not in defaults or _plain(value) != _plain(defaults[key]):
            kept[key] = value
    return kept


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _nested(facts: Mapping[str, Any], indent: str = "  ") -> Iterator[tuple[str, str]]:
    for key, value in facts.items():
        if isinstance(value, Mapping) and value:
            yield indent + key, ""
            yield from _nested(value, indent + "  ")
        else:
            yield indent + key, _value(value)


def _tensors(tensors: Iterable[Tensor]) -> dict[str, Any]:
    tensors = list(tensors)
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors})
    return {"parameters": sum(tensor.numel() for tensor in tensors), "dtypes": dtypes}


def _lora(config: LoRAConfig | None, lora: LoRA) -> dict[str, Any] | None:
    if config is None:
        return None
    return asdict(config) | {"sites": len(lora)} | _tensors(t for delta in lora.values() for t in delta[:2])


def _lora_line(lora: dict[str, Any] | None) -> str:
    if lora is None:
        return "none"
    return f"rank {lora['rank']}, alpha {lora['alpha']:g}, {lora['sites']} sites: {_parameters(lora)}"


def _parameters(facts: dict[str, Any]) -> str:
    return f"{facts['parameters']:,} parameters, {' and '.join(facts['dtypes'])}"


def _fingerprint(value: str | None) -> str:
    return "not recorded, so any copy of the model is taken" if value is None else value


def _value(value: Any) -> str:
    return value if isinstance(value, str) and value == value.strip() != "" else json.dumps(value, ensure_ascii=False)


def _size(size: float) -> str:
    for unit in UNITS[:-1]:
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} {UNITS[-1]}"
