"""Which bridges a model file has in its weights already: ComfyUI's savers write the graph into the file's header."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from comfy.model_patcher import ModelPatcher

APPLY = "LaViBridgeApply"
SAVERS = ("ModelSave", "CheckpointSave")


def bridges_in_file(model: ModelPatcher) -> list[str]:
    """Names of the bridges whose LoRA a model may have been saved with. Known of what a stock loader of ComfyUI 0.33 or
    later read from a .safetensors file that has its graph; else nothing is."""
    source = getattr(model, "cached_patcher_init", None)
    path = source[1][0] if source and source[1] else None
    return bridges_in(Path(path)) if isinstance(path, str) else []


def bridges_in(path: Path) -> list[str]:
    """The same of a file."""
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors" or not path.is_file():
        return []
    try:
        with safe_open(path, "pt") as file:
            graph = json.loads((file.metadata() or {}).get("prompt") or "{}")
    except (SafetensorError, ValueError, OSError):
        return []  # it was loaded; what its header says of graphs is for no one to stumble over
    if not isinstance(graph, dict):
        return []
    nodes = {
        name: node for name, node in graph.items() if isinstance(node, dict) and isinstance(node.get("inputs"), dict)
    }
    return sorted({*_applied(nodes)})


def _applied(nodes: Mapping[str, Any]) -> Iterator[str]:
    """The bridges on the way from a loader to a saver. In a merge they may have come to nothing."""
    waiting = [name for name, node in nodes.items() if node.get("class_type") in SAVERS]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in nodes:
            continue
        seen.add(name)
        inputs = nodes[name]["inputs"]
        wires = {key: value[0] for key, value in inputs.items() if isinstance(value, list) and value}
        waiting += [end for end in wires.values() if isinstance(end, str)]
        if nodes[name].get("class_type") == APPLY and inputs.get("strength") != 0:
            loader = nodes.get(str(wires.get("bridge")), {"inputs": {}})
            yield str(loader["inputs"].get("bridge", "unknown"))
