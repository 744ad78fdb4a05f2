"""A conditioning says of which bridge it is, and a model with a bridge's LoRA tells where it hears another's, or has
the LoRA twice; a graph without such a model is told so, each time it is queued.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context
from torch import Tensor

from .brought_lora import brings, first_rows, has_one, may_bring
from .notice import forget, host_server, notice, said, stand, standing, take_back

OF = "lavi_bridge_of"  # the key under which a bridge's BridgeConfig travels in a conditioning; and of our wrapper

APPLY, HOOK = "LaViBridgeApply", "LaViBridgeHook"  # nodes whose model follows a timed bridge
LOADERS = ("LaViBridgeLoad", "LaViBridgeLoadWithModel")
# Inputs of what samples, beside its model; a guider of two models has the negative prompt for the second.
PROMPTS = ("positive", "negative", "conditioning", "cond1", "cond2", "empty_conditioning")
SECOND, SECONDS = "model_negative", "negative"


@dataclass(frozen=True)
class Needs:
    """What a bridge wants of the model that samples. timed: to be asked at each timestep. lora: its LoRA, which a LoRA
    loader could bring too, as ``first_rows`` knows it; none where it has none."""

    timed: bool
    lora: list[Tensor]


_NEEDS: dict[str, Needs] = {}  # of each bridge that was loaded, by its file
_QUEUED: dict[str, Any] = {}  # the nodes of the graph that was queued last


def watch_queue() -> None:
    """Have each graph that is queued looked at: whether Apply Bridge is in it shows in no node that would run again."""
    if (server := host_server()) is not None:
        server.add_on_prompt_handler(_queued)


def tell_where_not_applied(name: str, timed: bool, lora: Mapping[str, Any]) -> None:
    """Of the Load Bridge that runs: one line where its prompts are sampled by a model that no node brings the bridge
    ``name`` to; see ``Needs``."""
    _NEEDS[name] = Needs(timed, first_rows(lora))
    running = get_executing_context()
    if running is not None:
        graph = get_progress_state().dynprompt
        nodes = {key: graph.get_node(key) for key in graph.all_node_ids()}
        stand(_not_applied(nodes, running.node_id, name), running.node_id)


def _queued(request: dict[str, Any]) -> dict[str, Any]:
    graph = request.get("prompt")
    nodes = {key: node for key, node in graph.items() if isinstance(node, dict)} if isinstance(graph, dict) else {}
    names = {key: _inputs(node).get("bridge") for key, node in nodes.items() if node.get("class_type") in LOADERS}
    loaded = {key: name for key, name in names.items() if isinstance(name, str) and name in _NEEDS}
    for key in nodes:
        if key in loaded or key in standing():
            stand(_not_applied(nodes, key, loaded[key]) if key in loaded else "", key)
    for key in said() & nodes.keys():  # by a node of the host's: ours take it back when they run
        if not str(nodes[key].get("class_type")).startswith("LaVi") and _up_to(_QUEUED, key) != _up_to(nodes, key):
            forget(key)
    _QUEUED.clear()
    _QUEUED.update(nodes)
    return request


def _up_to(nodes: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A node and all before it, without what the front end alone knows of them."""
    before = _before(nodes, [[key, 0]])
    return {one: (nodes[one].get("class_type"), _inputs(nodes[one])) for one in before}


def _not_applied(nodes: Mapping[str, Any], bridge: str, name: str) -> str:
    """What is to be told of the node ``bridge``, which loads the bridge of this name; "" = nothing. Of a timed one it
    is told where no node of the graph could follow it, too."""
    needs = _NEEDS[name]
    sampled = [pair for node in nodes.values() if not _hands_model_on(node) for pair in _sampled(_inputs(node))]
    follows = any(_follows(nodes, key) for key in nodes)
    if needs.timed and (not follows or any(_deaf(nodes, *pair, bridge) for pair in sampled)):
        return (
            f"{name} gives another context at each timestep, and the sampler hears one of them alone: put Apply Bridge "
            "to Model before it, or give it the MODEL of Bridge as Hook"
        )
    if needs.lora and any(_bare(nodes, *pair, bridge, needs.lora) for pair in sampled):
        return (
            f"the model that samples has not the LoRA of {name}, with which it was trained to hear it: put Apply "
            "Bridge to Model before it, or the HOOKS of Bridge as Hook on each conditioning from this bridge"
        )
    return ""


def _hands_model_on(node: Mapping[str, Any]) -> bool:
    """Whether it takes prompts to make a model for them, and samples nothing."""
    known = getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {})
    given = getattr(known.get(node.get("class_type")), "RETURN_TYPES", ())
    return "MODEL" in given and not {"LATENT", "GUIDER", "IMAGE"} & set(given)


def _sampled(inputs: Mapping[str, Any]) -> Iterator[tuple[Any, list[Any]]]:
    """The link of each model that a node with these inputs samples, and those of the prompts that it hears."""
    prompts = {key: inputs[key] for key in PROMPTS if key in inputs}
    if SECOND in inputs:
        yield inputs[SECOND], [link for key, link in prompts.items() if key == SECONDS]
        prompts.pop(SECONDS, None)
    if "model" in inputs:
        yield inputs["model"], list(prompts.values())


def _follows(nodes: Mapping[str, Any], key: str) -> bool:
    """Whether the model that this node gives follows timed bridges: any, for each brings its adapter along."""
    if nodes[key].get("class_type") not in (APPLY, HOOK):
        return False
    loaders = _before(nodes, [_inputs(nodes[key]).get("bridge")])
    names = [_inputs(nodes[one]).get("bridge") for one in loaders if nodes[one].get("class_type") in LOADERS]
    return not names or any(not isinstance(name, str) or name not in _NEEDS or _NEEDS[name].timed for name in names)


def _deaf(nodes: Mapping[str, Any], model: Any, prompts: list[Any], bridge: str) -> bool:
    """Whether what the node ``bridge`` says is sampled by a model that follows no timestep. A merge of models goes on
    as the first of them."""
    before = _before(nodes, [model], leave=("model2", "model3"))
    return bridge in _before(nodes, prompts) and not any(_follows(nodes, key) for key in before)


def _bare(nodes: Mapping[str, Any], model: Any, prompts: list[Any], bridge: str, lora: list[Tensor]) -> bool:
    """Whether what the node ``bridge`` says is sampled without its LoRA as far as the graph tells: in the model, or in
    the hooks of each of the prompts."""
    if _brings_lora(nodes, model, APPLY, lora):
        return False
    return any(bridge in _before(nodes, [link]) and not _brings_lora(nodes, link, HOOK, lora) for link in prompts)


def _brings_lora(nodes: Mapping[str, Any], link: Any, ours: str, lora: list[Tensor]) -> bool:
    before = [nodes[key] for key in _before(nodes, [link])]
    if any(node.get("class_type") == ours or (ours == APPLY and has_one(_inputs(node))) for node in before):
        return True
    kinds = [(str(node.get("class_type")), node) for node in before]
    loaders = [node for kind, node in kinds if "lora" in kind.lower() and not kind.startswith("LaVi")]
    return any(may_bring(_inputs(node), lora) for node in loaders)


def _before(nodes: Mapping[str, Any], links: list[Any], leave: tuple[str, ...] = ()) -> set[str]:
    """The nodes that these links come from, and all before them. leave: inputs that are not looked behind."""
    found: set[str] = set()
    links = [*links]
    while links:
        link = links.pop()
        if isinstance(link, list) and len(link) == 2 and str(link[0]) in nodes and str(link[0]) not in found:
            found.add(str(link[0]))
            links.extend(value for key, value in _inputs(nodes[str(link[0])]).items() if key not in leave)
    return found


def _inputs(node: Mapping[str, Any]) -> Mapping[str, Any]:
    found = node.get("inputs")
    return found if isinstance(found, dict) else {}


def listen(model: ModelPatcher, name: str, config: Any, count: Callable[[ModelPatcher], int]) -> None:
    """Have it told when ``model``, a clone with the LoRA of this bridge, is sampled with the conditioning of others
    alone, or with the LoRA once more. A conditioning of no bridge says nothing, and one of several bridges in parts has
    this one among them.

    count: how often the LoRA is in a model."""
    model.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, OF)
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, OF, _telling(name, config, count, count(model)))


def _hooked(conds: list[dict[str, Any]], lora: list[Tensor]) -> bool:
    """Whether a hook on one of them brings the LoRA known by ``lora``; the host's keep a file's tensors."""
    hooks = {hook for cond in conds if cond.get("hooks") is not None for hook in cond["hooks"].hooks}
    return bool(lora) and any(brings(getattr(hook, "weights", None), lora) for hook in hooks)


def _made(config: Any) -> Any:
    """What a copy that Save Bridge wrote has too, which may be without its LoRA."""
    parts = (config.language, config.prompt, config.adapter, config.vision, config.own_encoder)
    return *parts, config.provenance.get("recipe")


def _telling(name: str, config: Any, count: Callable[[ModelPatcher], int], right: int) -> Callable[..., Any]:
    def sample(executor: Any, *args: Any, **more: Any) -> Any:
        take_back()
        if count(executor.class_obj.model_patcher) > right:
            notice(
                f"the LoRA of {name} is in this model from Apply Bridge to Model, and once more from a LoRA loader "
                "after it: take one of the two out"
            )
        conds = [cond for conds in executor.class_obj.conds.values() for cond in conds or ()]
        if _hooked(conds, _NEEDS[name].lora if name in _NEEDS else []):
            notice(
                f"the LoRA of {name} is in this model from Apply Bridge to Model, and once more in the hooks of a "
                "conditioning, which add it where they act: take one of the two out"
            )
        heard = [cond[OF] for cond in conds if OF in cond]
        if heard and _made(config) not in map(_made, heard):
            notice(
                f"this model has the LoRA of {name} (from {config.language.model_id}), and the prompts come from "
                f"another bridge (from {heard[0].language.model_id}): give Bridge Text Encode the bridge that Apply "
                "Bridge to Model has"
            )
        return executor(*args, **more)

    return sample
