"""Bridges whose adapter hears the timestep: what the language model said is kept in the conditioning, and the adapter
runs anew at each call of the vision model, at the noise that the sampler is at.

A wrapper of the model does it, so it is gone with the clone; a conditioning of another bridge, or of none, passes
through it as it is.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import comfy.model_sampling
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from .notice import notice, take_back

TIMED = "lavi_bridge_timed"  # the key under which a TimedContext travels in a conditioning
KEY = "lavi_bridge_timestep"  # of our wrapper and of the adapter in the host's tables
KEPT = 32 * 2**20  # bytes: 160 timesteps of ELLA's 64 tokens, 50 of 77 tokens for SDXL
SHOWN_AT = 500.0  # the timestep of the context that stands in the conditioning, for nodes that look at it


class TimedContext:
    """The context of a prompt at each timestep; those that were asked for last are kept, up to KEPT bytes, so that a
    further picture of the same steps asks nothing anew. shown: that at SHOWN_AT. heard: bytes that ``at`` holds."""

    def __init__(self, shown: Tensor, at: Callable[[Tensor], Tensor], heard: int):
        self.shown = shown
        self._at, self._heard = at, heard
        self._kept: OrderedDict[float, Tensor] = OrderedDict()

    def __str__(self) -> str:
        return "a context for each timestep"

    def at(self, timestep: float) -> Tensor:
        """[1 T C]; timestep as the core's ``Adapter.forward`` has it. Regions and both sides of a step share one."""
        if timestep not in self._kept:
            self._kept[timestep] = self._at(torch.tensor(timestep))
            while len(self._kept) > 1 and self._kept_bytes > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(timestep)
        return self._kept[timestep]

    @property
    def nbytes(self) -> int:
        """Of all that it keeps."""
        return self._heard + self._kept_bytes

    @property
    def _kept_bytes(self) -> int:
        return sum(context.nbytes for context in self._kept.values())


def timestep_of(model: Any, sigma: Tensor) -> float:
    """The host's noise level -> the timestep that the vision model is told in training: its index for DDPM models, 1000
    times the share of noise for flows."""
    sampling = model.model_sampling
    if isinstance(sampling, comfy.model_sampling.CONST):
        return 1000 * float(sigma)
    if isinstance(sampling, getattr(comfy.model_sampling, "COSMOS_RFLOW", ())):  # noise to data
        return 1000 * float(sigma / (sigma + 1))
    return float(sampling.timestep(sigma))


def follow(model: ModelPatcher, adapter: ModelPatcher) -> None:
    """Have the contexts put in while ``model``, a clone, is sampled; the host loads the adapter beside it."""
    model.remove_wrappers_with_key(WrappersMP.CALC_COND_BATCH, KEY)
    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, _put_in)
    model.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, _telling)
    model.set_additional_models(KEY, [adapter])


def _telling(executor: Any, *args: Any, **more: Any) -> Any:
    """Of hooks with keyframes on a CLIP the host encodes a prompt for each of them, and keeps the context alone."""
    take_back()
    conds = (cond for side in executor.class_obj.conds.values() for cond in side or ())
    if any("clip_start_percent" in cond and TIMED not in cond for cond in conds):
        notice(
            "prompts of a CLIP with hooks that change while sampling (Set CLIP Hooks with schedule_clip) stand still "
            f"at timestep {SHOWN_AT:g} where the CLIP is that of a bridge that hears the timestep: set schedule_clip "
            "to false"
        )
    return executor(*args, **more)


def _put_in(executor: Any, model: Any, conds: Any, x: Tensor, sigma: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The host's CALC_COND_BATCH: conditionings that are sampled at one noise level."""
    conds = [side and [_at(model, one, sigma) for one in side] for side in conds]
    return executor(model, conds, x, sigma, *args, **kwargs)


def _at(model: Any, conditioning: dict[str, Any], sigma: Tensor) -> dict[str, Any]:
    timed, found = conditioning.get(TIMED), conditioning.get("model_conds", {}).get("c_crossattn")
    if timed is None or found is None:
        return conditioning
    standing = conditioning.get("cross_attn", timed.shown)
    if standing.shape != timed.shown.shape or not torch.equal(standing.to(timed.shown), timed.shown):
        raise ValueError(
            "a node between Bridge Text Encode and the sampler has changed the tokens of a bridge that gives others at "
            "each timestep (Conditioning Concat, Average, Zero Out and the like), which would be lost: take it out; an "
            "empty negative is a Bridge Text Encode without text"
        )
    context = timed.at(timestep_of(model, sigma.flatten()[0])).to(found.cond)
    return conditioning | {"model_conds": conditioning["model_conds"] | {"c_crossattn": type(found)(context)}}
