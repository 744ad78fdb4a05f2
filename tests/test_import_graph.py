"""The import graph of each layer: no circle of files, and no import from a lower folder to a higher one."""

from __future__ import annotations

from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from .test_layers import LAYERS, ROOT, Import, imports

# Rooms of a layer, files and folders directly in it, from the ground up: a room imports its own or earlier ones.
ROOMS = {
    "lavi_core": (
        *(
            "registry conditioning prompt files foreign_files peft_config segmenter",
            "config",
            "quantized",
            "fingerprint lora",
        ),
        "lora_files",
        *("language adapters vision", "checkpoint own_encoder", "bridge", "importers", "exporters"),
    ),
    "training": (
        *("recipe shapebench", "models", "data", "loop", "dry_run", "evaluation", "demo", "experiment", "probe"),
        *("commands", "__main__"),
    ),
    "nodes": (
        *(
            "schema folders cache_signature kohya_names notice progress prompt_syntax quantized_patcher saved_model "
            "shared_patcher brought_lora same_bridge window",
        ),
        "timed",
        *("casting context_tokens clip_tokens prompt_cache vision_model", "language attention_recorder"),
        *("clip foreign lora model_search attention_maps", "bridge"),
        *("from_clip load_with_model vision", "hook save two_ears"),
    ),
}


def module_file(parts: tuple[str, ...]) -> Path | None:
    """The file of a dotted module, or of the package that a name was taken from; None for what is not of this tree."""
    for stem in (parts, parts[:-1]):
        for path in (ROOT.joinpath(*stem).with_suffix(".py"), ROOT.joinpath(*stem, "__init__.py")):
            if path.is_file():
                return path
    return None


@cache
def arrows(layer: str) -> dict[Path, dict[Path, Import]]:
    """file -> the files of its layer that it imports, inside functions and for type checkers too, and where."""
    graph: dict[Path, dict[Path, Import]] = {}
    for file in sorted((ROOT / layer).rglob("*.py")):
        targets = graph.setdefault(file, {})
        for found in imports(file):
            target = module_file(found.module) if found.relative and found.module[0] == layer else None
            if target is not None and target != file:
                targets.setdefault(target, found)
    return graph


def room(layer: str, file: Path) -> str:
    return file.relative_to(ROOT / layer).parts[0].removesuffix(".py")


def circle(graph: dict[Path, dict[Path, Import]]) -> list[Path]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


@pytest.mark.parametrize("layer", LAYERS)
def test_no_circle_of_imports(layer: str):
    found = circle(arrows(layer))
    assert not found, " <- ".join(str(file.relative_to(ROOT)) for file in found)


@pytest.mark.parametrize("layer", LAYERS)
def test_no_room_imports_a_higher_one(layer: str):
    floor = {name: height for height, names in enumerate(ROOMS[layer]) for name in names.split()} | {"__init__": 99}
    wrong = [
        str(found)
        for file, targets in arrows(layer).items()
        for target, found in targets.items()
        if floor[room(layer, target)] > floor[room(layer, file)]
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("layer", LAYERS)
def test_every_room_has_its_floor(layer: str):
    there = {room(layer, file) for file in arrows(layer)} - {"__init__"}
    assert there == {name for names in ROOMS[layer] for name in names.split()}


def test_language_adapters_and_vision_do_not_know_of_each_other():
    alike = {"language", "adapters", "vision"}
    graph = arrows("lavi_core")
    wrong = [
        str(found)
        for file, targets in graph.items()
        for target, found in targets.items()
        if len({room("lavi_core", file), room("lavi_core", target)} & alike) == 2
    ]
    assert not wrong, "\n".join(wrong)


def test_a_circle_is_seen():
    a, b, c = (Path(name) for name in "abc")
    made = Import(a, 1, ("a",), True, True)
    assert circle({a: {b: made}, b: {c: made}, c: {a: made}}) and not circle({a: {b: made}, b: {c: made}, c: {}})


def test_the_top_of_training_is_its_rooms():
    """Rooms are found by folder names: a run's recipe is the one module beside them."""
    entries = {room("training", file) for file in (ROOT / "training").rglob("*.py")}
    assert entries - {"__init__", "__main__"} == {"recipe", "shapebench", "models", "data", "loop", "dry_run"} | {
        *("evaluation", "demo", "experiment", "probe", "commands")
    }
