"""What a user sees before running anything."""

from __future__ import annotations

import re
import shutil

from lavi_bridge.tests.nodes.host import PACK

NODES = {
    "LaViBridgeLoadLanguageModel",
    "LaViBridgeLanguageModelFromCLIP",
    "LaViBridgeLanguageLoRA",
    "LaViBridgeLoad",
    "LaViBridgeLoadWithModel",
    "LaViBridgeTextEncode",
    "LaViBridgeTextEncodeWithClip",
    "LaViBridgeApply",
    "LaViBridgeHook",
    "LaViBridgeSave",
    "LaViBridgeLoadVisionModel",
    "LaViBridgeTokens",
    "LaViBridgeWatchAttention",
    "LaViBridgeAttentionMaps",
}


def test_all_nodes_are_registered(server):
    ours = {name: info for name, info in server.get("/object_info").items() if name.startswith("LaViBridge")}
    assert set(ours) == NODES
    assert {info["category"] for info in ours.values()} == {"LaVi-Bridge"}
    assert all(info["display_name"] and info["description"] for info in ours.values())


def test_every_input_and_output_has_a_tooltip(server):
    for name in NODES:
        info = server.get(f"/object_info/{name}")[name]
        for group in ("required", "optional"):
            for field, (_, options) in info["input"].get(group, {}).items():
                assert options.get("tooltip"), f"{name}.{field}"
        assert all(info["output_tooltips"]), name


def test_the_start_imports_no_library_of_models(server):
    """What ComfyUI says of the pack's share of its start: some 20 ms, and seconds with transformers, which the bound,
    wide enough for a busy machine, tells apart."""
    seconds = re.search(rf"([\d.]+) seconds: .*{PACK}", server.log())
    assert seconds is not None and float(seconds[1]) < 1.5, server.log()[-3000:]


def test_names_are_those_of_the_folders(server, base):
    def options(node, field):
        kind, settings = server.get(f"/object_info/{node}")[node]["input"]["required"][field]
        return kind if isinstance(kind, list) else settings["options"]

    assert "tiny-bert" in options("LaViBridgeLoadLanguageModel", "model")
    folders = sorted(path.name for path in (base / "models" / "diffusers").iterdir())
    assert options("LaViBridgeLoadVisionModel", "model") == folders and "tiny-pixart" in folders
    assert "peft-llama" in options("LaViBridgeLanguageLoRA", "lora")
    fresh = base / "models" / "lavi_bridges" / "sub" / "fresh.safetensors"
    fresh.parent.mkdir(exist_ok=True)
    shutil.copy(base / "models" / "lavi_bridges" / "bert.safetensors", fresh)
    (fresh.parent / "README.md").write_text("not a bridge")
    assert "sub/fresh.safetensors" in options("LaViBridgeLoad", "bridge")
    assert not [name for name in options("LaViBridgeLoad", "bridge") if name.endswith(".md")]
    shutil.rmtree(fresh.parent)
