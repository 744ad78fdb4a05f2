"""The host's own description of a model, for a shape, a schedule and latents that a folder says."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import comfy.supported_models
from comfy.supported_models_base import BASE

from .latents import fit
from .scheduler import flow_shift


def described(
    name: str,
    unet_config: dict[str, Any],
    scheduler: dict[str, Any],
    row: Any,
    space: Any,
    channels: int | None = None,
    by_mu: bool = False,
) -> BASE:
    """``comfy.supported_models``' class of this name, with its precisions, its need of memory and its kind of sampling;
    for the others see ``shifted``."""
    return shifted(getattr(comfy.supported_models, name)(unet_config), scheduler, row, space, channels, by_mu)


def shifted(
    found: BASE, scheduler: dict[str, Any], row: Any, space: Any, channels: int | None = None, by_mu: bool = False
) -> BASE:
    """A description with the scheduler's shift, where it says one, and the latents of the folder.

    space: their LatentSpace. channels: how many; None = as many as the class has. by_mu: the class takes its shift as
    mu, the logarithm (``ModelType.FLUX``).
    """
    shift = flow_shift(scheduler, row)
    if shift is not None:
        found.sampling_settings["shift"] = math.log(shift) if by_mu else shift
    fit(found.latent_format, space, channels)
    return found


def only_known(unet_config: dict[str, Any], takes: Callable[..., Any]) -> dict[str, Any]:
    """Without what this host's class does not take: newer ones have more knobs, older ones the default built in."""
    known = inspect.signature(takes).parameters
    return {key: value for key, value in unet_config.items() if key in known}
