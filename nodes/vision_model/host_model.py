"""HostModel: ComfyUI's class for a diffusers network, and how its weights and configs are renamed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from comfy.supported_models_base import BASE
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class HostModel:
    """network: the host's class. context_weight: how the name of the weight
    [width, context width] ends where text enters.

    describe: (config.json, scheduler_config.json, the core's row, latent scale) -> the host's description of the model.
    rename: (weights, the host's ``unet_config``) -> the weights under the host's names; it may empty what it is given.
    Both raise ValueError for what the host's network cannot be.
    """

    network: type[nn.Module]
    context_weight: str
    describe: Callable[[dict[str, Any], dict[str, Any], Any, float], BASE]
    rename: Callable[[dict[str, Tensor], dict[str, Any]], dict[str, Tensor]]
