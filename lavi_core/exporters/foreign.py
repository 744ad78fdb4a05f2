"""A bridge's adapter as another project keeps it: the inverse of ``importers/foreign.py``."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from ..checkpoint import BridgeCheckpoint
from ..importers.dialect import Dialect, Preset, Shapes
from ..importers.foreign import FOREIGN
from ..importers.key_map import parted, theirs_of


def to_foreign(checkpoint: BridgeCheckpoint, dialect: str) -> dict[str, Tensor]:
    """The adapter's tensors by the names of a row of ``FOREIGN``, in the dtypes that they have: what was imported and
    not trained is what it was, to the bit.

    Raises ValueError for a bridge that the format cannot hold: of another adapter, or with LoRA beside it; and for one
    of other heads than it will be read with, which no shape tells, or of other layers than its file says.
    """
    row, config = FOREIGN[dialect], checkpoint.config.adapter
    for side, lora in (("language", checkpoint.language_lora), ("vision", checkpoint.vision_lora)):
        if lora:
            raise ValueError(
                f"the bridge has a {side} LoRA, for which {row.what} has no place: train with {side}.train = 'frozen'"
            )
    tensors, found = {}, None
    try:
        tensors = parted(checkpoint.adapter, theirs_of(checkpoint.adapter, row.keys))
        found = row.adapter(Shapes({name: tuple(t.shape) for name, t in tensors.items()}, "the export"), config.heads)
    except ValueError:
        pass  # told below
    if found != config:  # what is written must be read as what it was
        raise ValueError(
            f"the bridge's adapter {config.kind!r} is not {row.what}, and cannot be kept as one: take another format"
        )
    texts = _texts(checkpoint, row)
    presets = read_by(checkpoint, dialect).values()
    for preset in presets if texts else ():
        ours, theirs = (
            (checkpoint.config.prompt.hidden_states, config.heads),
            (preset.prompt.hidden_states, preset.heads),
        )
        if ours != theirs:
            raise ValueError(
                f"the bridge hears hidden_states {ours[0]} with {ours[1]} heads, the config that goes into the file of "
                f"{row.what} says {theirs[0]} and {theirs[1]}: train one by the latter"
            )
    known = {preset.heads for preset in presets if preset.heads is not None}
    if known and config.heads not in (*known, _given(checkpoint)):
        raise ValueError(
            f"{row.what} is read with {' or '.join(map(str, sorted(known)))} heads, which its files do "
            f"not say, the bridge's adapter has {config.heads}: train one with as many (adapter.heads)"
        )
    if texts:
        tensors = {f"{row.prefixes[0]}{name}": tensor for name, tensor in tensors.items()}
        tensors |= {name: _bytes(texts[part]) for part, name in row.texts.items()}
    return tensors


def read_by(checkpoint: BridgeCheckpoint, dialect: str) -> dict[str, Preset]:
    """The presets by which its file will be read, by name."""
    row = FOREIGN[dialect]
    texts, told = _texts(checkpoint, row), row.told
    return {name: one if told is None else told(one, texts) for name, one in row.presets.items()}


def _texts(checkpoint: BridgeCheckpoint, row: Dialect) -> dict[str, str]:
    """By part, of a bridge whose adapter asks with what its file says."""
    return json.loads(checkpoint.query_tokenizer or "{}") if row.texts else {}


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def _given(checkpoint: BridgeCheckpoint) -> int | None:
    """The heads that the file's user named when it was imported."""
    made = checkpoint.config.provenance
    return made.get("started_from", made).get("changed", {}).get("heads")
