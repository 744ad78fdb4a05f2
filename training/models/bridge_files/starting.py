"""The bridge that a run starts from, checked against the run's models."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from ....lavi_core.bridge import check_language
from ....lavi_core.checkpoint import BridgeCheckpoint
from ....lavi_core.config import LanguageConfig, OwnEncoderConfig
from ....lavi_core.importers import is_ours, read_any
from ....lavi_core.lora import Delta
from ...recipe import LanguageSection, VisionSection
from ..lora_layers import LoRALayer
from ..vision_model import VisionModel

log = logging.getLogger(__name__)


def started_from(
    path: str,
    preset: str | None,
    language: LanguageConfig,
    vision: VisionModel,
    pooled_width: int | None,
    ear: OwnEncoderConfig | None,
    query_tokenizer: str = "",
) -> BridgeCheckpoint:
    """Read it. Raises ValueError for another language model than it was made for, and for a vision model that takes
    other widths; another vision model of the same widths is what it may be trained on for.

    pooled_width: of the pooled vector that the bridge is to give. ear: the own encoder that the run hears beside it.
    query_tokenizer: of another project's adapter that asks with a second one's ids.
    """
    if query_tokenizer and is_ours(path):
        raise ValueError(
            f"adapter.query_tokenizer is {query_tokenizer!r}, but {path}, which the run starts from, has its own: "
            "leave it out"
        )
    start = read_any(path, preset, query_tokenizer=query_tokenizer or None)
    try:
        check_language(start.config.language, language)
    except ValueError as error:
        raise ValueError(f"adapter.from = {path}: {error}") from None
    adapter = start.config.adapter
    sizes = (
        ("context", adapter.out_width, vision.context_width),
        ("pooled", adapter.pooled_width, pooled_width),
    )
    for what, gives, takes in sizes:
        if gives != takes:
            raise ValueError(
                f"adapter.from = {path} gives {what} width {gives}, the vision model {vision.model_id} takes {takes}"
                f"{' beside its own encoder' * (ear is not None)}: start from another bridge, or train on another "
                "vision model"
            )
    if (start.config.own_encoder is None) != (ear is None):
        was, now = ("alone", "beside the own encoder")[:: 1 if ear is not None else -1]
        log.warning("%s was trained to be heard %s, this run has it heard %s, see [own_encoder]", path, was, now)
    return start


@torch.no_grad()
def take_over(
    start: BridgeCheckpoint,
    side: Literal["language", "vision"],
    model: nn.Module,
    section: LanguageSection | VisionSection,
    sites: Sequence[str],
) -> None:
    """Put the bridge's LoRA of one side into the LoRA layers of a model, or say why it is not taken over."""
    lora, made = getattr(start, f"{side}_lora"), getattr(start.config, f"{side}_lora")
    if not lora:
        return
    if section.train != "lora":
        why = f"{side}.train is {section.train!r}"
    elif (made.rank, made.alpha) != (section.rank, section.alpha):
        why = f"it has rank {made.rank} and alpha {made.alpha:g}, the run {section.rank} and {section.alpha:g}"
    elif lora.keys() != set(sites):
        why = f"one of the two has {sorted(lora.keys() ^ set(sites))[0]} among its sites, the other not"
    else:
        layers = {path: model.get_submodule(path) for path in sites}
        odd = next((path for path, layer in layers.items() if not _fits(layer, lora[path])), None)
        if odd is None:
            for path, layer in layers.items():
                assert isinstance(layer, LoRALayer)
                layer.down.copy_(lora[path].down)
                layer.up.copy_(lora[path].up)
            return
        why = f"its matrices for {odd} are of other sizes"
    log.warning("the bridge's %s LoRA is not taken over, and begins anew where it is trained: %s", side, why)


def _fits(layer: nn.Module, delta: Delta) -> bool:
    return isinstance(layer, LoRALayer) and (layer.down.shape, layer.up.shape) == (delta.down.shape, delta.up.shape)
