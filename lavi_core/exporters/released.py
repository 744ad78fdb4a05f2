"""A bridge as LaVi-Bridge's authors release theirs: the inverse of ``importers/released.py``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import BridgeCheckpoint
from ..importers.module_order import LANGUAGE_ORDERS, VISION_ORDERS, in_order
from ..language import TextEncoder
from ..lora import Delta, LoRA, check
from ..vision import VISION_TARGETS

KIND = "mlp"  # of the adapters in our table, the authors'


@dataclass(frozen=True)
class Released:
    """adapter, adapter_config: of ``adapter/``, in float32. language, vision: ``lora_text.pt`` and ``lora_vis.pt``,
    half-precision matrices [up, down, up, down, ...] in the order of the modules."""

    adapter: dict[str, Tensor]
    adapter_config: dict[str, Any]
    language: list[Tensor]
    vision: list[Tensor]


def to_released(checkpoint: BridgeCheckpoint, encoder: TextEncoder, network: nn.Module) -> Released:
    """The bridge in the authors' layout; exact but for the half precision of the lists.

    encoder, network: the language model and the diffusers vision model of the bridge; their weights are not read, so
    both may be on the meta device. A scale other than 1, for which the lists have no place, goes into the up matrices
    where it is a power of two. Raises ValueError, in one sentence, for a bridge that the layout cannot hold.
    """
    config = checkpoint.config
    row = VISION_TARGETS[config.vision.target]
    adapter = config.adapter
    if adapter.kind != KIND:
        raise ValueError(f"the bridge has the adapter {adapter.kind!r}, the authors' layout holds {KIND!r} alone")
    if adapter.layers is not None or config.prompt.stacked > 1:
        raise ValueError(
            f"the bridge hears several layers (hidden_states = {config.prompt.hidden_states!r}), the authors' scripts "
            "hand on one"
        )
    if adapter.pooled_width is not None:
        raise ValueError(
            f"the bridge gives a pooled vector of width {adapter.pooled_width}, the authors' adapter makes none"
        )
    orders = LANGUAGE_ORDERS[encoder.family.name], VISION_ORDERS[row.diffusers_class]
    language = _list("language", checkpoint.language_lora, encoder.model, in_order(encoder.lora_sites(), orders[0]))
    vision = _list("vision", checkpoint.vision_lora, network, in_order(row.sites(network), orders[1]))
    widths = {"in_dim": adapter.in_width, "int_dim": adapter.inner_width, "out_dim": adapter.out_width}
    return Released(
        adapter={name: tensor.detach().float() for name, tensor in checkpoint.adapter.items()},
        adapter_config={"_class_name": "TextAdapter", "_diffusers_version": "0.16.1"} | widths,
        language=language,
        vision=vision,
    )


def _list(side: str, lora: LoRA, model: nn.Module, paths: list[str]) -> list[Tensor]:
    check(model, lora)
    missing = [path for path in paths if path not in lora]
    if missing:
        raise ValueError(
            f"the bridge's {side} LoRA has {len(lora)} of the {len(paths)} sites of {type(model).__name__}, not "
            f"{missing[0]}: the authors' lists name no module, so every site must be there"
        )
    other = sorted(lora.keys() - set(paths))
    if other:
        raise ValueError(f"the bridge's {side} LoRA adapts {other[0]}, which the authors' lists have no place for")
    ranks = sorted({delta.down.shape[0] for delta in lora.values()})
    if len(ranks) > 1:
        raise ValueError(
            f"the bridge's {side} LoRA has the ranks {', '.join(map(str, ranks))}, the authors' lists hold one rank"
        )
    return [half for path in paths for half in _halves(f"{side} LoRA of {path}", lora[path])]


def _halves(name: str, delta: Delta) -> tuple[Tensor, Tensor]:
    """(up, down), the scale in the former."""
    if math.frexp(delta.scale)[0] != 0.5:  # any other factor changes the digits of the matrix
        rank = delta.down.shape[0]
        raise ValueError(
            f"the {name} has alpha / rank = {delta.scale * rank:g} / {rank}, the authors' lists hold no scale and only "
            "a power of two can go into the matrices without loss; train with such an alpha, or export as peft or lora"
        )
    up, down = (delta.up.detach() * delta.scale).to("cpu", torch.float16), delta.down.detach().to("cpu", torch.float16)
    for half in (up, down):
        if not bool(half.isfinite().all()):
            raise ValueError(f"the {name} has values that half precision, which the authors' lists are in, cannot hold")
    return up.contiguous(), down.contiguous()
