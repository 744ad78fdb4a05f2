"""Bridge as Hook: a bridge's vision LoRA for the conditionings it is attached to, and for no other.

So one region, or one part of the sampling, can be heard through a bridge and another through the model's own encoder.
"""

from __future__ import annotations

from typing import Any

from comfy.hooks import EnumWeightTarget, HookGroup, WeightHook
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from .bridge import ConnectedBridge
from .notice import notice
from .schema import BridgeWire, schema
from .vision import apply, patches, refuse_second

OF = "lavi_bridge"  # says whose LoRA a hook brings; on a function, for the host copies nothing else of ours


def as_hook(
    model: ModelPatcher, bridge: ConnectedBridge, strength: float, before: HookGroup | None = None
) -> tuple[HookGroup, ModelPatcher]:
    """The bridge's vision LoRA as a hook of the host, behind those of ``before``, and the model with its latents put
    right. Raises ValueError where the bridge was made for another model; the hook does, when a model is sampled that
    has the LoRA of a bridge already. Tells of a bridge whose hook is in ``before``."""
    hook = WeightHook(strength_model=strength, strength_clip=0.0)
    hook.weights, hook.weights_clip, hook.need_weight_init = patches(model, bridge), {}, False
    hooks = [] if before is None else before.hooks
    if any(getattr(other.custom_should_register, OF, None) == bridge.name for other in hooks):
        notice(f"the LoRA of {bridge.name} is in prev_hooks already, and is added where both act: take one of them out")

    def should_register(_: Any, sampled: ModelPatcher, __: Any, target: dict[str, Any], ___: Any) -> bool:
        if target.get("target") is EnumWeightTarget.Clip:
            return False
        refuse_second(sampled, bridge)
        return True

    setattr(should_register, OF, bridge.name)
    hook.custom_should_register = should_register
    group = HookGroup()
    group.add(hook)
    return group if before is None else before.clone_and_combine(group), apply(model, bridge, 0.0)


class BridgeAsHook(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LaViBridgeHook",
            display_name="Bridge as Hook (LaVi-Bridge)",
            description="The bridge's LoRA for single conditionings instead of the whole model: one region hears the "
            "language model, another the model's own text encoder.",
            search_aliases=["hook", "regional", "per conditioning", "lora hook"],
            inputs=[
                io.Model.Input("model", tooltip="The vision model, without Apply Bridge to Model."),
                BridgeWire.Input("bridge", tooltip="From Load Bridge."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.01,
                    tooltip="Strength of the bridge's LoRA where the hook acts: 1 = as trained, 0 = none.",
                ),
                io.Hooks.Input("prev_hooks", optional=True, tooltip="Hooks that act beside this one."),
            ],
            outputs=[
                io.Hooks.Output(
                    display_name="HOOKS", tooltip="For Cond Set Props, on the conditionings from this bridge."
                ),
                io.Model.Output(
                    display_name="MODEL", tooltip="The model for the sampler, without the LoRA, its latents put right."
                ),
            ],
        )

    @classmethod
    def execute(
        cls, model: ModelPatcher, bridge: ConnectedBridge, strength: float, prev_hooks: HookGroup | None = None
    ) -> io.NodeOutput:
        return io.NodeOutput(*as_hook(model, bridge, strength, prev_hooks))
