"""Frozen, LoRA or full training of a model: weights are frozen or opened, LoRA is injected and read back."""

from __future__ import annotations

from torch import nn

from ...lavi_core.config import LoRAConfig
from ...lavi_core.lora import Delta, LoRA
from ..recipe import LanguageSection, VisionSection
from .lora_layers import LoRALayer, inject


def prepare(model: nn.Module, section: LanguageSection | VisionSection, sites: list[str]) -> None:
    """Freeze a model, inject LoRA into ``sites``, or open it whole, as the recipe says.

    Raises ValueError for sites that LoRA is not trained beside.
    """
    model.requires_grad_(section.train == "full")
    if section.train == "full":
        model.float()
    if section.train == "lora":
        inject(model, sites, section.rank, section.alpha, section.dropout)


def deltas(model: nn.Module, sites: list[str]) -> LoRA:
    """The LoRA as it stands, by module path of the untouched model."""
    found = {}
    for path in sites:
        layer = model.get_submodule(path)
        assert isinstance(layer, LoRALayer)
        down, up = (weight.detach().cpu().clone() for weight in (layer.down, layer.up))
        found[path] = Delta(down, up, layer.scale)
    return found


def lora_config(section: LanguageSection | VisionSection) -> LoRAConfig | None:
    return LoRAConfig(rank=section.rank, alpha=section.alpha) if section.train == "lora" else None
