"""Frozen, LoRA or full training of a model: weights are frozen or opened, LoRA is injected by peft and read back."""

from __future__ import annotations

import re

from torch import nn

from ...lavi_core.config import LoRAConfig
from ...lavi_core.lora import Delta, LoRA
from ..recipe import LanguageSection, VisionSection

HOLDER = "adapted"


def prepare(model: nn.Module, section: LanguageSection | VisionSection, sites: list[str]) -> None:
    """Freeze a model, inject LoRA into ``sites``, or open it whole, as the recipe says.

    LoRA starts as the authors': down ~ N(0, 1/rank), up = 0. Raises ValueError for sites that peft cannot adapt.
    """
    model.requires_grad_(section.train == "full")
    if section.train == "full":
        model.float()
    if section.train == "lora":
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer

        config = LoraConfig(
            r=section.rank,
            lora_alpha=section.alpha,  # type: ignore[arg-type]
            lora_dropout=section.dropout,
            target_modules="|".join(rf"{HOLDER}\.{re.escape(site)}" for site in sites),
            init_lora_weights="gaussian",
        )
        try:
            # In a module that is no model of transformers: of one that is a mixture of experts peft would adapt every
            # layer, by names of its own in the place of the sites.
            inject_adapter_in_model(config, nn.ModuleDict({HOLDER: model}))
        except ValueError as error:
            kinds = sorted({type(model.get_submodule(site)).__name__ for site in sites})
            raise ValueError(
                f"peft puts no LoRA into {', '.join(kinds)} of {type(model).__name__}; set train = 'frozen' or 'full', "
                "or take another model"
            ) from error
        for key, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in key)
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        for layer in model.modules():
            if isinstance(layer, BaseTunerLayer):  # else every input goes to float32, and by autocast back to bf16
                layer.cast_input_dtype_enabled = False  # type: ignore[assignment]
        injected = sum(key.endswith("lora_A.default.weight") for key, _ in model.named_parameters())
        assert injected == len(sites), f"{injected} LoRA sites were injected, {len(sites)} were asked for"


def deltas(model: nn.Module, sites: list[str], section: LanguageSection | VisionSection) -> LoRA:
    """The LoRA as it stands, by module path of the untouched model."""
    found = {}
    for path in sites:
        layer = model.get_submodule(path)
        down, up = (getattr(layer, part)["default"].weight.detach().float().cpu() for part in ("lora_A", "lora_B"))
        found[path] = Delta(down.clone(), up.clone(), section.alpha / section.rank)
    return found


def lora_config(section: LanguageSection | VisionSection) -> LoRAConfig | None:
    return LoRAConfig(rank=section.rank, alpha=section.alpha) if section.train == "lora" else None
