"""A conditioning says of which bridge it is, and a model with a bridge's LoRA tells where it hears another's; a graph
without such a model is told so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context

from .notice import notice

OF = "lavi_bridge_of"  # the key under which a bridge's BridgeConfig travels in a conditioning; and of our wrapper

APPLIED_BY = ("LaViBridgeApply", "LaViBridgeHook")  # nodes whose model has the LoRA, and follows a timed bridge
PROMPTS = ("positive", "negative", "conditioning", "cond1", "cond2")  # inputs of what samples, beside its model


def tell_where_not_applied(name: str, timed: bool, lora: bool) -> None:
    """Of the Load Bridge that runs: one line where its prompts are sampled by a model that no node brings the bridge
    ``name`` to.

    timed: it gives a context for each timestep, and the line is for a graph that has no such node at all. lora: it has
    a LoRA for the vision model, which a LoRA loader could bring too.
    """
    running = get_executing_context()
    if running is None:
        return
    graph = get_progress_state().dynprompt
    nodes = {key: graph.get_node(key) for key in graph.all_node_ids()}
    if timed and not any(node["class_type"] in APPLIED_BY for node in nodes.values()):
        notice(
            f"{name} gives another context at each timestep, and the sampler hears one of them alone: put Apply Bridge "
            "to Model before it"
        )
    elif lora and any(_bare(nodes, node.get("inputs", {}), running.node_id) for node in nodes.values()):
        notice(
            f"the model that samples has not the LoRA of {name}, with which it was trained to hear it: put Apply "
            "Bridge to Model before it"
        )


def _bare(nodes: Mapping[str, Any], inputs: Mapping[str, Any], bridge: str) -> bool:
    """Whether a node with these inputs samples what the node ``bridge`` says, without its LoRA as far as names tell."""
    prompts = _before(nodes, [inputs[key] for key in PROMPTS if key in inputs])
    if "model" not in inputs or bridge not in prompts:
        return False
    kinds = {nodes[key]["class_type"] for key in prompts | _before(nodes, [inputs["model"]])}
    return not any(kind in APPLIED_BY or "lora" in kind.lower() for kind in kinds)


def _before(nodes: Mapping[str, Any], links: list[Any]) -> set[str]:
    """The nodes that these links come from, and all before them."""
    found: set[str] = set()
    while links:
        link = links.pop()
        if isinstance(link, list) and len(link) == 2 and str(link[0]) in nodes and str(link[0]) not in found:
            found.add(str(link[0]))
            links.extend(nodes[str(link[0])].get("inputs", {}).values())
    return found


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
