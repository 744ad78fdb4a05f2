"""Adapters that others publish as one safetensors file -> BridgeCheckpoint: a row for each kind, known by its names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import adapters
from ..checkpoint import BridgeCheckpoint
from ..config import AdapterConfig, BridgeConfig, VisionConfig
from ..files import read_safetensors
from ..language import TextEncoder
from ..prompt import PromptRecipe

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class LoneFile:
    """What is known of one kind of file.

    what: it is, for a message. signs: parts of names that only its files have, all of them. keys: how tensors' names
    begin in the file, and in our adapter. elsewhere: how those begin that are no part of an adapter.
    configure: (shapes by names, **options) -> the adapter's config; options: what shapes do not tell, with a default.
    prompt: how its publishers' scripts turn prompts into tokens, and source: which scripts, and what else is theirs.
    """

    what: str
    signs: tuple[str, ...]
    keys: tuple[tuple[str, str], ...]
    configure: Callable[..., AdapterConfig]
    prompt: PromptRecipe
    source: str
    elsewhere: tuple[str, ...] = ()

    def is_of(self, names: Collection[str]) -> bool:
        return all(any(sign in name for name in names) for sign in self.signs)

    def prompt_of(self, encoder: TextEncoder) -> PromptRecipe:
        """For this language model: padding is on the side that its tokenizer's own files say, else on the right."""
        side = getattr(encoder.tokenizer, "init_kwargs", {}).get("padding_side", self.prompt.padding_side)
        return replace(self.prompt, padding_side=side)

    def to_ours(self, name: str) -> str | None:
        """The name of a tensor in our adapter; None = it is none of an adapter's. Raises ValueError for one that is
        not known."""
        if name.startswith(self.elsewhere):
            return None
        return _renamed(name, self.keys, f"{self.what} of a version that is not known")

    def to_theirs(self, name: str) -> str:
        return _renamed(name, tuple((ours, theirs) for theirs, ours in self.keys), f"no {self.what}")


def _renamed(name: str, keys: tuple[tuple[str, str], ...], otherwise: str) -> str:
    for before, after in keys:
        if name.startswith(before):
            return after + name.removeprefix(before)
    raise ValueError(f"the tensor {name} is of {otherwise}")


def read_lone(
    row: LoneFile,
    path: str | Path,
    encoder: TextEncoder,
    vision: VisionConfig,
    pooled_width: int | None,
    prompt: PromptRecipe,
    provenance: dict[str, Any],
    **options: Any,
) -> BridgeCheckpoint:
    """A file of the kind as a bridge; tensors keep their dtypes.

    encoder: its weights are not read. pooled_width: of the pooled vector that the vision model takes. options: of the
    kind's ``configure``. Raises ValueError in one sentence, naming both sides.
    """
    state = read_safetensors(path)
    named = ((row.to_ours(name), tensor) for name, tensor in state.items())
    adapter = {name: tensor for name, tensor in named if name is not None}
    try:
        config = row.configure({name: tuple(tensor.shape) for name, tensor in state.items()}, **options)
    except KeyError as error:
        raise ValueError(f"{path} lacks the tensor {error.args[0]}; fetch it again") from None
    _check(row, path, config, adapter)
    if config.pooled_width not in (None, pooled_width):
        raise ValueError(
            f"{path} gives a pooled vector of width {config.pooled_width}, {vision.model_id} takes "
            f"{'none' if pooled_width is None else f'one of width {pooled_width}'}: name the vision model that it was "
            "made for"
        )
    if config.pooled_width is None:
        vision = replace(vision, other_pooled=pooled_width)
    provenance = {"imported": row.what, "file": Path(path).name, "prompt as in": row.source} | provenance
    made = BridgeConfig(language=encoder.config, prompt=prompt, adapter=config, vision=vision, provenance=provenance)
    return BridgeCheckpoint(made, adapter)


def to_lone(row: LoneFile, checkpoint: BridgeCheckpoint) -> dict[str, Tensor]:
    """The adapter under the names of the kind's files. Raises ValueError for a bridge that is more."""
    for side, lora in (("language", checkpoint.language_lora), ("vision", checkpoint.vision_lora)):
        if lora:
            raise ValueError(f"the bridge has a {side} LoRA, for which {row.what} has no place: export it by itself")
    return {row.to_theirs(name): tensor for name, tensor in checkpoint.adapter.items()}


def _check(row: LoneFile, path: str | Path, config: AdapterConfig, adapter: Mapping[str, Tensor]) -> None:
    with torch.device("meta"):
        wanted = {name: tuple(tensor.shape) for name, tensor in adapters.build(config).state_dict().items()}
    for name in wanted | dict(adapter):
        ours, found = wanted.get(name), tuple(adapter[name].shape) if name in adapter else None
        if found is None:
            raise ValueError(f"{path} lacks the tensor {row.to_theirs(name)}; fetch it again")
        if ours != found:
            raise ValueError(
                f"{row.to_theirs(name)} of {path} is {found}, {row.what} of its sizes has {ours or 'no such tensor'}"
            )
