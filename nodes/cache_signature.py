"""Signatures of a node and its inputs, equal from one queue to the next: which sampler made these pictures?"""

from __future__ import annotations

import hashlib
from typing import Any

from comfy_execution.graph_utils import is_link
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context


def current_signatures() -> frozenset[str]:
    """Signatures of the node that runs now and of the nodes that have expanded into it; empty outside of a graph."""
    running = get_executing_context()
    graph, found, known = get_progress_state().dynprompt, [], {}
    node_id = None if running is None else running.node_id
    while node_id is not None and graph.has_node(node_id):
        found.append(_signature(graph, node_id, known))
        node_id = graph.get_parent_node_id(node_id)
    return frozenset(found)


def upstream_signatures(name: str) -> list[str] | None:
    """Signatures of the nodes behind the input ``name`` of the node that runs now, the nearest first; None outside of a
    graph."""
    running = get_executing_context()
    if running is None:
        return None
    graph, known = get_progress_state().dynprompt, {}
    nodes = [link[0] for link in [graph.get_node(running.node_id)["inputs"].get(name)] if is_link(link)]
    for node_id in nodes:
        above = [link[0] for _, link in _links(graph, node_id)]
        nodes.extend(other for other in dict.fromkeys(above) if other not in nodes)
    return [_signature(graph, node_id, known) for node_id in nodes if graph.has_node(node_id)]


def _links(graph: Any, node_id: str) -> list[tuple[str, list[Any]]]:
    inputs = graph.get_node(node_id)["inputs"] if graph.has_node(node_id) else {}
    return [(name, value) for name, value in inputs.items() if is_link(value) and graph.has_node(value[0])]


def _signature(graph: Any, node_id: str, known: dict[str, str]) -> str:
    """The same for two nodes of one kind with the same inputs, all the way up, whatever their ids are."""
    if node_id not in known:
        node = graph.get_node(node_id)
        linked = {name: (_signature(graph, at, known), slot) for name, (at, slot) in _links(graph, node_id)}
        content = repr((node["class_type"], sorted((node["inputs"] | linked).items())))
        known[node_id] = hashlib.sha256(content.encode()).hexdigest()
    return known[node_id]
