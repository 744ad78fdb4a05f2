"""A bridge's vision LoRA for a part of the sampling alone, by the host's own hooks and keyframes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from comfy.hooks import EnumWeightTarget, HookGroup, HookKeyframe, HookKeyframeGroup, WeightHook, create_target_dict
from comfy.model_patcher import ModelPatcher, create_hook_patches_clone
from comfy.patcher_extension import WrappersMP

WINDOW = "lavi_bridge_window"  # the attachment of a model whose LoRA acts in a part of the sampling: (start, end)


def within(model: ModelPatcher, patches: dict[Any, Any], strength: float, start: float, end: float) -> ModelPatcher:
    """A clone of ``model`` that has the host's ``patches`` from ``start`` to ``end``, as shares of the sampling from 0
    to 1, whichever the conditionings; before and after it is the model itself."""
    dynamic = getattr(model, "is_dynamic", bool)()  # a patcher of newer hosts for GPUs, which takes no hooks
    bridged: ModelPatcher = model.get_non_dynamic_delegate() if dynamic else model.clone()
    bridged.set_attachments(WINDOW, (start, end))
    bridged.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, WINDOW, _sampling(patches, strength, _keyframes(start, end)))
    return bridged


def _keyframes(start: float, end: float) -> HookKeyframeGroup:
    frames = HookKeyframeGroup()
    for begins, strength in ((0.0, 0.0), (start, 1.0), (end, 0.0)):
        if begins < 1.0:
            frames.add(HookKeyframe(strength, begins, guarantee_steps=0))
    return frames


def _sampling(patches: dict[Any, Any], strength: float, frames: HookKeyframeGroup) -> Callable[..., Any]:
    def sample(executor: Any, *args: Any, **kwargs: Any) -> Any:
        guider = executor.class_obj
        model, options = guider.model_patcher, guider.model_options
        hook = WeightHook(strength_model=strength, strength_clip=0.0)
        hook.weights, hook.weights_clip, hook.need_weight_init = patches, {}, False
        hook.hook_keyframe = frames.clone()
        if model.hook_patches_backup is None:
            model.hook_patches_backup = create_hook_patches_clone(model.hook_patches)  # the host goes back to it
        registered = options.setdefault("registered_hooks", HookGroup())
        hook.add_hook_patches(model, options, create_target_dict(EnumWeightTarget.Model), registered)
        ours = HookGroup()
        ours.add(hook)
        joined: dict[Any, HookGroup] = {}  # conditionings that share their hooks go through the model together
        for cond in (cond for conds in guider.conds.values() for cond in conds):
            theirs = cond.get("hooks")
            if theirs not in joined:
                joined[theirs] = ours if theirs is None else theirs.clone_and_combine(ours)
            cond["hooks"] = joined[theirs]
        return executor(*args, **kwargs)

    return sample
