"""What a node shows of itself in the front end, on a running host."""

from __future__ import annotations

from typing import Any

from lavi_bridge.lavi_core.importers import FOREIGN
from lavi_bridge.tests.nodes.graphs import encoders, node
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
