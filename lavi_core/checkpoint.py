"""A bridge in one file: config, adapter, language LoRA and vision LoRA in a .safetensors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import adapters
from .adapters import ADAPTERS
from .config import SCHEMA, BridgeConfig, from_dict
from .files import write_safetensors
from .foreign_files import what_it_is
from .language.gguf_file import gguf_shapes, is_gguf
from .lora import LoRA
from .vision import VISION_TARGETS, KeyFormat
from .vision.keys import fused_rows, lora_tensors, read_lora

HEADER = "lavi_bridge"  # the config, as JSON
PATHS = "lavi_bridge_lora"  # {"language": [module paths], "vision": [module paths]}, as JSON
ROWS = "rows"  # in it: {module path: output rows} of the parts of fused matrices
ADAPTER = "adapter."
QUERY_TOKENIZER = "query_tokenizer"  # the bytes of ``BridgeCheckpoint.query_tokenizer``, [n] uint8
LANGUAGE_KEYS = KeyFormat("language_lora.", ".", ".lora_down.weight", ".lora_up.weight")


@dataclass
class BridgeCheckpoint:
    """Everything a trained bridge is. The vision LoRA's tensors carry the names that stock ComfyUI reads, so the file
    can be given to its LoRA loader as it is.

    query_tokenizer: of a kind that ``asks``, the text of the tokenizer.json whose ids it asks with, or of what
    prompts are cut into rows by (``language/row_cutter.py``)."""

    config: BridgeConfig
    adapter: dict[str, Tensor]
    language_lora: LoRA = field(default_factory=dict)
    vision_lora: LoRA = field(default_factory=dict)
    query_tokenizer: str | None = None

    def save(
        self, path: str | Path, dtype: torch.dtype | None = None, adapter_dtype: torch.dtype | None = None
    ) -> None:
        """Write the file whole or not at all: a full disk or a crash leaves an older file of that name as it was.

        dtype: what floating tensors are stored in; None = as they are. adapter_dtype: those of the adapter, where it is
        another. Raises OSError as writing does.
        """
        tensors = {ADAPTER + name: tensor for name, tensor in self.adapter.items()}
        tensors |= lora_tensors(self.language_lora, LANGUAGE_KEYS)
        keys = VISION_TARGETS[self.config.vision.target].keys
        tensors |= lora_tensors(self.vision_lora, keys)
        if self.query_tokenizer is not None:
            tensors[QUERY_TOKENIZER] = torch.frombuffer(bytearray(self.query_tokenizer.encode()), dtype=torch.uint8)
        _check_tensors(self.config, tensors, self.language_lora, self.vision_lora, str(path))
        lists: dict[str, Any] = {"language": list(self.language_lora), "vision": list(self.vision_lora)}
        if rows := fused_rows(self.vision_lora, keys):
            lists[ROWS] = rows
        metadata = {"format": "pt", HEADER: json.dumps(dataclasses.asdict(self.config)), PATHS: json.dumps(lists)}
        stored = {
            name: _storable(name, tensor, (adapter_dtype or dtype) if name.startswith(ADAPTER) else dtype)
            for name, tensor in tensors.items()
        }
        write_safetensors(path, stored, metadata)

    @classmethod
    def load(cls, path: str | Path) -> BridgeCheckpoint:
        """Read and check a whole bridge file, on the CPU.

        Raises ValueError, in one sentence, for a missing or damaged file, one that is no bridge, one of a newer schema,
        and for tensors that are left over, missing or of another shape.
        """
        config, lists, tensors = _read(Path(path))
        keys = {"language": LANGUAGE_KEYS, "vision": VISION_TARGETS[config.vision.target].keys}
        adapter = {k.removeprefix(ADAPTER): t for k, t in tensors.items() if k.startswith(ADAPTER)}
        try:
            language, vision = (read_lora(tensors, lists[side], keys[side], lists[ROWS]) for side in keys)
        except KeyError as error:
            raise ValueError(f"{path} lacks the tensor {error.args[0]}; fetch or save it again") from None
        _check_tensors(config, tensors, language, vision, str(path))
        queries = tensors.get(QUERY_TOKENIZER)
        try:
            text = None if queries is None else bytes(queries.numpy()).decode()
        except (TypeError, UnicodeDecodeError) as error:
            raise ValueError(f"{QUERY_TOKENIZER} of {path} is no text ({error}); fetch or save it again") from None
        return cls(config, adapter, language, vision, text)


def read_config(path: str | Path) -> BridgeConfig:
    """The config of a bridge file, of which the header alone is read. Raises ValueError for what is no bridge."""
    return _parse(*_header(Path(path)), Path(path))


def is_bridge(path: Path) -> bool:
    """Whether a safetensors file has a bridge's header. Raises ValueError for a damaged one."""
    return HEADER in _header(path)[0]


def _header(path: Path) -> tuple[dict[str, str], list[str]]:
    """(metadata, names of the tensors)"""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ValueError(f"there is no bridge file {path}")
    if is_gguf(path):
        known = what_it_is(gguf_shapes(path)) or "a GGUF file of no known kind"
        raise ValueError(f"{path} is no bridge, but {known}")
    try:
        with safe_open(str(path), "pt") as file:
            return file.metadata() or {}, list(file.keys())
    except SafetensorError as error:
        raise ValueError(f"{path} is cut short, damaged or no safetensors file at all ({error})") from None


def _parse(metadata: Mapping[str, str], names: list[str], path: Path) -> BridgeConfig:
    if HEADER not in metadata:
        known = what_it_is(names) or (
            f"a safetensors file of no known kind (its header has no {HEADER!r}): fetch it again or save it anew"
        )
        raise ValueError(f"{path} is no bridge, but {known}")
    try:
        data: dict[str, Any] = json.loads(metadata[HEADER])
        schema = data.get("schema")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: the config in its header is not readable ({error})") from None
    if isinstance(schema, int) and schema > SCHEMA:  # before its keys are read: a newer schema has keys unknown here
        raise ValueError(f"{path} has schema {schema}, this version reads up to {SCHEMA}; update the pack")
    try:
        return from_dict(BridgeConfig, data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read(path: Path) -> tuple[BridgeConfig, dict[str, Any], dict[str, Tensor]]:
    from safetensors.torch import load_file

    metadata, names = _header(path)
    config = _parse(metadata, names, path)
    try:
        found = json.loads(metadata[PATHS])
        lists: dict[str, Any] = {side: [str(p) for p in found[side]] for side in ("language", "vision")}
        lists[ROWS] = {str(p): int(rows) for p, rows in found.get(ROWS, {}).items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ValueError(f"{path} does not list its LoRA modules ({PATHS!r} in its header); save it again") from None
    return config, lists, load_file(str(path))


def _check_tensors(
    config: BridgeConfig, tensors: Mapping[str, Tensor], language: LoRA, vision: LoRA, where: str
) -> None:
    """Every tensor that the config and the LoRA lists ask for, of the right shape, and no other."""
    with torch.device("meta"):
        adapter = adapters.build(config.adapter).state_dict()
    shapes = {ADAPTER + name: tuple(t.shape) for name, t in adapter.items()}
    for name, shape in shapes.items():
        if name not in tensors:
            raise ValueError(f"{where} lacks the tensor {name}; fetch or save it again")
        if tuple(tensors[name].shape) != shape:
            raise ValueError(f"{where}: {name} has shape {tuple(tensors[name].shape)}, its config asks for {shape}")
    known = shapes.keys() | lora_tensors(language, LANGUAGE_KEYS).keys()
    known |= lora_tensors(vision, VISION_TARGETS[config.vision.target].keys).keys()
    if ADAPTERS[config.adapter.kind].asks:
        known.add(QUERY_TOKENIZER)
        if QUERY_TOKENIZER not in tensors:
            raise ValueError(f"{where} lacks the tokenizer of its adapter's queries; fetch or save it again")
    leftover = sorted(tensors.keys() - known)
    if leftover:
        raise ValueError(f"{where} has {len(leftover)} tensors that its config does not explain, first {leftover[0]}")


def _storable(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    keep = dtype is None or name.endswith(".alpha") or not tensor.is_floating_point()
    return tensor.detach().to("cpu", tensor.dtype if keep else dtype, copy=True).contiguous()
