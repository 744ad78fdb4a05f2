"""A conditioning says of which bridge it is, and a model with a bridge's LoRA tells where it hears another's; a graph
without such a model is told so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context

from .notice import notice

OF = "lavi_bridge_of"  # the key under which a bridge's BridgeConfig travels in a conditioning; and of our wrapper

APPLIED_BY = ("LaViBridgeApply", "LaViBridgeHook")  # nodes whose model has the LoRA, and follows a timed bridge
PROMPTED = {"positive", "conditioning", "cond1"}  # inputs of what samples, beside its model


def tell_where_not_applied(name: str, timed: bool, lora: bool) -> None:
    """One line where the graph that runs samples, and has no node that brings the bridge ``name`` to a vision model.

    timed: it gives a context for each timestep. lora: it has a LoRA for the vision model, which a LoRA loader could
    bring too.
    """
    if get_executing_context() is None or not (timed or lora):
        return
    graph = get_progress_state().dynprompt
    nodes = [graph.get_node(node) for node in graph.all_node_ids()]
    if any(node["class_type"] in APPLIED_BY for node in nodes):
        return
    inputs = [set(node.get("inputs", ())) for node in nodes]
    if timed:
        notice(
            f"{name} gives another context at each timestep, and the sampler hears one of them alone: put Apply Bridge "
            "to Model before it"
        )
    elif any("model" in given and given & PROMPTED for given in inputs) and not any("lora_name" in g for g in inputs):
        notice(
            f"the model that samples has not the LoRA of {name}, with which it was trained to hear it: put Apply "
            "Bridge to Model before it"
        )


def listen(model: ModelPatcher, name: str, config: Any) -> None:
    """Have it told when ``model``, a clone with the LoRA of this bridge, is sampled with the conditioning of others
    alone. A conditioning of no bridge says nothing, and one of several bridges in parts has this one among them."""
    model.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, OF)
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, OF, _telling(name, config))


def _made(config: Any) -> Any:
    """What a copy that Save Bridge wrote has too, which may be without its LoRA."""
    parts = (config.language, config.prompt, config.adapter, config.vision, config.own_encoder)
    return *parts, config.provenance.get("recipe")


def _telling(name: str, config: Any) -> Callable[..., Any]:
    def sample(executor: Any, *args: Any, **more: Any) -> Any:
        conds = (cond for conds in executor.class_obj.conds.values() for cond in conds or ())
        heard = [cond[OF] for cond in conds if OF in cond]
        if heard and _made(config) not in map(_made, heard):
            notice(
                f"this model has the LoRA of {name} (from {config.language.model_id}), and the prompts come from "
                f"another bridge (from {heard[0].language.model_id}): give Bridge Text Encode the bridge that Apply "
                "Bridge to Model has"
            )
        return executor(*args, **more)

    return sample
