"""LoRA as ComfyUI's own weight patches: added to a clone, checked to fit every site, gone with the clone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor, nn

from . import folders
from .language import LanguageModel
from .schema import LanguageModelWire, schema

ADDED = "lavi_language_lora"  # the attachment of a language model: content of each LoRA that a user added -> its name


def places(name: str | None) -> tuple[str, ...]:
    """The kinds of folder that a LoRA of this name lies in: a bridge is a file, a PEFT LoRA a folder or a file."""
    is_file = bool(name) and name.lower().endswith(folders.BRIDGE_FILES)
    return (folders.BRIDGES, *folders.LORAS) if is_file else folders.LORAS


def add(patcher: ModelPatcher, lora: Mapping[str, Any], keys: Mapping[str, Any], strength: float, to: str) -> None:
    """Patch every delta of the core's ``lora`` in, or raise ValueError: half a LoRA is another model.

    keys: module path -> the host's weight key, or (key, (dim, start, length)) for a part of a fused weight.
    """
    landed = patcher.add_patches(patches(patcher, lora, keys, to), strength)
    if len(landed) != len(lora):
        raise ValueError(f"only {len(landed)} of {len(lora)} LoRA sites landed in {to}; the LoRA was made for another")


def times_in(patcher: ModelPatcher, lora: Mapping[str, Any], keys: Mapping[str, Any]) -> int:
    """How often the model is patched with this LoRA, by us or a stock loader, at whichever strength."""
    path, delta = next(iter(lora.items()))
    key, found = keys.get(path, ""), 0
    for _, value, *_ in patcher.patches.get(key if isinstance(key, str) else key[0], []):
        up, down, *_ = getattr(value, "weights", None) or (None, None)
        pairs = ((down, delta.down), (up, delta.up))
        found += all(isinstance(a, Tensor) and a.numel() == b.numel() and _alike(a, b) for a, b in pairs)
    return found


def _alike(a: Tensor, b: Tensor) -> bool:
    """Of one half of a LoRA, in whatever dtype it was saved."""
    return torch.allclose(a.flatten().float(), b.flatten().float().to(a.device), rtol=1e-2)


def patches(patcher: ModelPatcher, lora: Mapping[str, Any], keys: Mapping[str, Any], to: str) -> dict[Any, Any]:
    """The same as patches that the host can add to this model, which is left as it is."""
    for path, delta in lora.items():
        if path not in keys:
            lost = [path for path in lora if path not in keys]
            raise ValueError(f"{len(lost)} of {len(lora)} LoRA sites are missing in {to}; the first is {path}")
        wanted, has = _shape(patcher.model, keys[path]), (delta.up.shape[0], delta.down[0].numel())
        if wanted != has:
            raise ValueError(f"the LoRA for {path} is made for a weight of {has}, that of {to} is {wanted}")
    tensors: dict[str, Tensor] = {}
    for path, delta in lora.items():
        tensors[f"{path}.lora_down.weight"] = delta.down
        tensors[f"{path}.lora_up.weight"] = delta.up
        tensors[f"{path}.alpha"] = torch.tensor(delta.scale * delta.down.shape[0])
    return comfy.lora.load_lora(tensors, {path: keys[path] for path in lora})


def _shape(model: nn.Module, key: Any) -> tuple[int, int] | None:
    """Of the weight of a key, or of the part of it that the key names; of a packed one that of its values."""
    name, part = (key, None) if isinstance(key, str) else (key[0], key[1])
    try:
        shape = list(comfy.utils.get_attr(model, name).shape)
    except AttributeError:
        return None
    if part is not None:
        shape[part[0]] = part[2]
    return shape[0], math.prod(shape[1:])


def add_to_language_model(
    language_model: LanguageModel, patcher: ModelPatcher, lora: Mapping[str, Any], strength: float
) -> None:
    """The same for a language model, whose patcher or a clone of it is given. Strength 0 adds nothing."""
    from ..lavi_core.lora import check, rebase

    trunk, name = language_model.encoder.model, language_model.encoder.config.model_id
    lora = rebase(trunk, lora)  # PEFT names a causal LM's modules, the trunk is what stands here
    try:
        check(trunk, lora)
    except ValueError as error:
        raise ValueError(f"this LoRA was not made for {name}: {error}") from None
    if strength:
        fitting = {path: turned(trunk.get_submodule(path), delta) for path, delta in lora.items()}
        keys = {path: f"{language_model.prefix}{path}.weight" for path in lora}
        add(patcher, fitting, keys, strength, name)


def turned(module: nn.Module, delta: Any) -> Any:
    """A delta of the core as one of the host, or the other way: GPT-2's linear maps keep their weight as [in out], and
    (up @ down) transposed is down.T @ up.T."""
    from ..lavi_core.lora import is_transposed

    return delta._replace(up=delta.down.T, down=delta.up.T) if is_transposed(module) else delta


def content(lora: Mapping[str, Any]) -> str:
    """The same for one LoRA wherever it lies, in a bridge or a PEFT folder, and at whichever strength."""
    parts = []
    for delta in lora.values():
        ends = [part.detach().flatten()[:1024].float().cpu() for part in (delta.down, delta.up)]
        parts.append(hashlib.sha256(torch.cat(ends).contiguous().numpy().tobytes()).hexdigest())
    return "".join(sorted(parts))


def note(patcher: ModelPatcher, lora: Mapping[str, Any], name: str) -> None:
    """Remember with a language model, and with its clones, that a user has added this LoRA to it."""
    patcher.set_attachments(ADDED, {**(patcher.get_attachment(ADDED) or {}), content(lora): name})


def refuse_second(patcher: ModelPatcher, lora: Mapping[str, Any], bridge: str) -> None:
    """Raise ValueError where the language LoRA of this bridge is in the language model already."""
    added = patcher.get_attachment(ADDED) or {}
    before = added.get(content(lora)) if added else None
    if before is not None:
        raise ValueError(
            f"this language model already has the LoRA of the bridge {bridge}, which Apply LoRA to Language Model took "
            f"from {before} and Load Bridge would add again: take Apply LoRA to Language Model out or set "
            "language_lora to 0"
        )


def is_peft(path: Path) -> bool:
    """Whether a folder is a LoRA as PEFT saves it."""
    return (path / "adapter_config.json").is_file()


def read(path: Path, trunk: nn.Module) -> Mapping[str, Any]:
    """The language LoRA of a PEFT folder, of a bridge file, or of a file with the names of kohya or PEFT."""
    from ..lavi_core.checkpoint import BridgeCheckpoint, is_bridge
    from ..lavi_core.lora import from_peft, is_site
    from ..lavi_core.lora_files import read_lora_file

    if path.is_dir():
        return from_peft(path)
    if not is_bridge(path):
        return read_lora_file(path, [name for name, module in trunk.named_modules() if is_site(module)])
    lora = BridgeCheckpoint.load(path).language_lora
    if not lora:
        raise ValueError(f"the bridge {path.name} has no language LoRA: its language model was left as it is")
    return lora


class ApplyLanguageLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        bridges = folders.names(folders.BRIDGES, suffixes=folders.BRIDGE_FILES)
        sources = folders.names(*folders.LORAS, folder=is_peft)
        sources += folders.names("loras", folder=is_peft, suffixes=(".safetensors",)) + bridges
        return schema(
            node_id="LaViBridgeLanguageLoRA",
            display_name="Apply LoRA to Language Model (LaVi-Bridge)",
            description="Adds a LoRA to a clone of the language model; refuses one of which any site does not fit.",
            search_aliases=["peft", "lora llm"],
            inputs=[
                LanguageModelWire.Input("language_model", tooltip="The language model; it is cloned, not changed."),
                io.Combo.Input(
                    "lora",
                    options=sorted({*sources} - {folders.NONE_FOUND}) or [folders.NONE_FOUND],
                    tooltip="A PEFT LoRA folder (adapter_config.json) in models/loras or models/LLM, a LoRA file with "
                    "names of kohya (lora_te) or PEFT in models/loras, or a bridge file, whose own language LoRA is "
                    "taken. Load Bridge adds that one by itself already.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.01,
                    tooltip="1 = as trained, 0 = none, negative = the opposite.",
                ),
            ],
            outputs=[LanguageModelWire.Output(display_name="language_model", tooltip="A clone with the LoRA added.")],
        )

    @classmethod
    def validate_inputs(cls, lora: str | None = None) -> bool | str:
        return folders.problem("LoRA", lora, *places(lora))

    @classmethod
    def fingerprint_inputs(cls, lora: str | None = None, **_: Any) -> str:
        return folders.stamp("LoRA", lora, *places(lora))

    @classmethod
    def execute(cls, language_model: LanguageModel, lora: str, strength: float) -> io.NodeOutput:
        patched = language_model.clone()
        added = read(folders.resolve("LoRA", lora, *places(lora)), patched.encoder.model)
        add_to_language_model(patched, patched.patcher, added, strength)
        if strength:
            note(patched.patcher, added, lora)
        return io.NodeOutput(patched)
