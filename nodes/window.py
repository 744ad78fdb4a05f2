"""A bridge's vision LoRA for a part of the sampling alone, by the host's own hooks: they take it out elsewhere.

So what asks for the model's weights (savers, mergers), or samples in a way of its own, finds the whole bridge.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from comfy.hooks import HookGroup, HookKeyframe, HookKeyframeGroup, WeightHook
from comfy.model_patcher import ModelPatcher, create_hook_patches_clone
from comfy.patcher_extension import WrappersMP

from .notice import notice, take_back

WINDOW = "lavi_bridge_window"  # the attachment of a model whose LoRA acts in a part of the sampling: (start, end)


class ByNoise(HookKeyframeGroup):
    """Keyframes by the noise of each call. The host's only move forward, and stay behind samplers that look ahead
    (heunpp2) or take a step once more (dpm_adaptive)."""

    def prepare_current_keyframe(self, curr_t: Any, transformer_options: Any) -> bool:
        before = self._current_keyframe
        self._current_keyframe = [frame for frame in self.keyframes if frame.start_t >= curr_t][-1]
        return self._current_keyframe is not before

    def clone(self) -> ByNoise:
        copy = ByNoise()
        copy.keyframes = [frame.clone() for frame in self.keyframes]
        copy._set_first_as_current()
        return copy


def within(model: ModelPatcher, patches: dict[Any, Any], strength: float, start: float, end: float) -> ModelPatcher:
    """A clone of ``model`` with the host's ``patches``, which are out before ``start`` and after ``end``, shares of the
    sampling from 0 to 1, whichever the conditionings."""
    dynamic = getattr(model, "is_dynamic", bool)()  # a patcher of newer hosts for GPUs, which takes no hooks
    bridged: ModelPatcher = model.get_non_dynamic_delegate() if dynamic else model.clone()
    bridged.add_patches(patches, strength)
    bridged.set_attachments(WINDOW, (start, end))
    bridged.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, WINDOW, _sampling(patches, strength, (start, end)))
    return bridged


def _sampling(patches: dict[Any, Any], strength: float, window: tuple[float, float]) -> Callable[..., Any]:
    frames = ByNoise()
    for begins, outside in ((0.0, 1.0), (window[0], 0.0), (window[1], 1.0)):
        if begins < 1.0:
            frames.add(HookKeyframe(outside, begins, guarantee_steps=0))

    def sample(executor: Any, noise: Any, latent_image: Any, sampler: Any, sigmas: Any, *args: Any, **more: Any) -> Any:
        take_back()
        guider = executor.class_obj
        model, options = guider.model_patcher, guider.model_options
        first, last = (model.get_model_object("model_sampling").percent_to_sigma(share) for share in window)
        if not any(last < float(sigma) <= first for sigma in sigmas[:-1]):
            notice(
                f"no step of this sampling lies between {window[0]:g} and {window[1]:g}, so the bridge's LoRA does "
                "nothing in it: widen start_percent and end_percent of Apply Bridge to Model, unless another sampler "
                "has those steps"
            )
        hook = WeightHook(strength_model=-strength, strength_clip=0.0)
        hook.weights, hook.weights_clip, hook.need_weight_init = patches, {}, False
        hook.hook_keyframe = frames.clone()
        if model.hook_patches_backup is None:
            model.hook_patches_backup = create_hook_patches_clone(model.hook_patches)  # the host goes back to it
        registered = options.setdefault("registered_hooks", HookGroup())
        for share, some in _by_share(model, patches).items():
            model.add_hook_patches(hook, some, -strength * share)
        registered.add(hook)
        ours = HookGroup()
        ours.add(hook)
        joined: dict[Any, HookGroup] = {}  # conditionings that share their hooks go through the model together
        for cond in (cond for conds in guider.conds.values() for cond in conds):
            theirs = cond.get("hooks")
            if theirs not in joined:
                joined[theirs] = ours if theirs is None else theirs.clone_and_combine(ours)
            cond["hooks"] = joined[theirs]
        return executor(noise, latent_image, sampler, sigmas, *args, **more)

    return sample


def _by_share(model: ModelPatcher, patches: dict[Any, Any]) -> dict[float, dict[Any, Any]]:
    """The patches by what a merge, which came later, has left of them: a share of what they were added with."""
    found: dict[float, dict[Any, Any]] = {}
    for key, patch in patches.items():
        there = model.patches.get(key if isinstance(key, str) else key[0], [])
        at = next((i for i, (_, value, *_) in enumerate(there) if value is patch), None)
        if at is not None:
            share = math.prod(strength_model for _, _, strength_model, *_ in there[at + 1 :])
            found.setdefault(share, {})[key] = patch
    return found
