"""What a node shows of itself in the front end, on a running host."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from lavi_bridge.lavi_core.importers import FOREIGN
from lavi_bridge.tests.nodes.graphs import encoders, node, picture
from lavi_bridge.tests.nodes.shown_texts import run_and_watch


def encoded(language: str, bridge: str, **inputs: Any) -> dict[str, Any]:
    graph = encoders(language, bridge, language_lora=1.0)
    graph["bridge"]["inputs"] |= inputs
    return graph | {"report": node("PreviewAny", source=["positive", 1])}


def shown_by(server: Any, graph: dict[str, Any]) -> str | None:
    """By Load Bridge, when the run is over."""
    outcome, shown = run_and_watch(server, graph)
    assert not outcome.error, outcome.error
    return shown.get("bridge")


def read_by(file: str, dialect: str, preset: str) -> str:
    row = FOREIGN[dialect]
    return f"{file} is {row.what}, read by the preset {preset}: {row.presets[preset].source}"


def test_load_bridge_shows_the_preset_of_anothers_adapter_and_whose_text_path_it_is(server):
    """Chosen by the sizes, and named; a bridge file has none, and takes back what was shown before it."""
    file = "golden-ella.safetensors"
    told = shown_by(server, encoded("states-t5", file))
    assert told is not None and told.startswith(read_by(file, "ella", "ella")), told
    file = "golden-rouwei-turbo.safetensors"
    for preset in ("gemma", "t5gemma"):
        told = shown_by(server, encoded("states-gemma", file, preset=preset))
        assert told == read_by(file, "rouwei_turbo", preset)
    assert shown_by(server, encoded("tiny-bert", "bert.safetensors")) == " "
    assert shown_by(server, encoded("tiny-llama", "llama.safetensors")) is None


def test_what_a_sampler_says_goes_with_its_cause(server):
    """Also where nothing of a bridge is left in the sampler that could take it back."""
    whole = picture(steps=2, language_lora=0.61)
    early = deepcopy(whole)
    early["bridged"]["inputs"] |= {"start_percent": 0.001, "end_percent": 0.002}

    def said_by_the_sampler(graph: dict[str, Any]) -> str | None:
        outcome, shown = run_and_watch(server, graph)
        assert not outcome.error, outcome.error
        return shown.get("sampler")

    for _ in range(2):
        told = said_by_the_sampler(early)
        assert told is not None and told.startswith("no step of this sampling lies between 0.001 and 0.002"), told
        early["sampler"]["inputs"]["seed"] += 1
    assert said_by_the_sampler(whole) == " "
    assert said_by_the_sampler(whole) is None


@pytest.mark.parametrize("hook", [False, True])
def test_a_graph_that_loses_apply_bridge_is_told_so_though_nothing_is_loaded_anew(server, hook):
    """And no more once it is back. A hook that no conditioning has brings the LoRA to none."""
    whole = picture(steps=1, language_lora=0.3 + hook / 10)
    bare = deepcopy(whole)
    del bare["bridged"]
    bare["sampler"]["inputs"]["model"] = ["vision", 0]
    if hook:
        bare["hook"] = node("LaViBridgeHook", model=["vision", 0], bridge=["bridge", 0], strength=1.0)
        bare["sampler"]["inputs"]["model"] = ["hook", 1]
    assert shown_by(server, whole) in (None, " ")
    for _ in range(2):
        told = shown_by(server, bare)
        assert told is not None and told.startswith("the model that samples has not the LoRA of bert.safetensors"), told
    assert shown_by(server, whole) == " "
    assert shown_by(server, whole) is None
