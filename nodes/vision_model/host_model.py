"""HostModel: ComfyUI's class for a diffusers network, and how its weights and configs are renamed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_base
import comfy.supported_models
from comfy.supported_models_base import BASE
from torch import Tensor, nn

from .renaming import Rule


def as_it_is(model: comfy.model_base.BaseModel) -> None:
    """The host's class can be built in any shape."""


def same_names(state: dict[str, Tensor], unet_config: dict[str, Any]) -> dict[str, Tensor]:
    """The host's names of weights are diffusers'."""
    return state


@dataclass(frozen=True, kw_only=True)
class HostModel:
    """network: the host's class. told_by: the end of the name of a weight that tells it from others of that class.
    context_weight: how the name of the weight [width, context width] ends where text enters; pooled_weight: the same of
    the pooled vector. needs: names in ``comfy.supported_models`` that older hosts lack.

    describe: (config.json, scheduler_config.json, the core's row, LatentSpace) -> the host's description of the model.
    rename: (weights, the host's ``unet_config``) -> the weights under the host's names; it may empty what it is given.
    adjust: puts right, in the model that was built, what the host's class has no knob for; before weights are loaded.
    rules: for names that the maps of some hosts lack, of weights and so of LoRA sites. counts_by_mask: older hosts know
    how long a prompt is by the sum of its mask alone.
    All raise ValueError for what the host's network cannot be.
    """

    network: type[nn.Module]
    context_weight: str
    describe: Callable[[dict[str, Any], dict[str, Any], Any, Any], BASE]
    rename: Callable[[dict[str, Tensor], dict[str, Any]], dict[str, Tensor]] = same_names
    told_by: str = ""
    pooled_weight: str = ""
    rules: tuple[Rule, ...] = ()
    counts_by_mask: bool = False
    needs: tuple[str, ...] = ()
    adjust: Callable[[comfy.model_base.BaseModel], None] = as_it_is

    @property
    def is_here(self) -> bool:
        """Whether this ComfyUI is new enough."""
        return all(hasattr(comfy.supported_models, name) for name in self.needs)
