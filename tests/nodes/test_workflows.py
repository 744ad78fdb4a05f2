"""The graphs that we ship: each opens in the front end, runs on a host, and says the same in both of its forms."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from lavi_bridge.lavi_core.vision import VISION_TARGETS
from lavi_bridge.tests.nodes.base_folder import DITS
from lavi_bridge.tests.nodes.host import PACK, ROOT, Server
from PIL import Image

WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
WIDGETS = ("COMBO", "INT", "FLOAT", "STRING", "BOOLEAN")
DECORATION = ("Note", "MarkdownNote")


# Latents of a video, which the tiny VAE of older hosts does not decode; Flux.2's it decodes nowhere.
VIDEO = ("anima", "anima_adapter", "anima_t5free", "cosmos", "qwen_image", "wan")


def needs_its_nodes(server: Server, path: Path) -> bool:
    """Skips where this host lacks a node of the graph; whether it is older than Flux.2 and Z-Image."""
    known = server.get("/object_info")
    kinds = {node["class_type"] for node in read(path.parent / "api" / path.name).values()}
    if not kinds <= known.keys():
        pytest.skip(f"this ComfyUI lacks {', '.join(kinds - known.keys())}")
    return "EmptyFlux2LatentImage" not in known


def read(path: Any) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def fields(info: dict[str, Any]) -> list[tuple[str, Any, dict[str, Any]]]:
    """A node's inputs in order: name, kind, options."""
    groups = (info["input"].get(group, {}) for group in ("required", "optional"))
    return [(name, spec[0], spec[1] if len(spec) > 1 else {}) for group in groups for name, spec in group.items()]


def api_form(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """What the front end would queue: links by node and slot, widgets in the order of the schema."""
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    graph = {}
    for node in workflow["nodes"]:
        if node["type"] in DECORATION:
            continue
        inputs = {socket["name"]: sources[socket["link"]] for socket in node["inputs"] if socket["link"] is not None}
        values = iter(node["widgets_values"])
        for name, kind, options in fields(object_info[node["type"]]):
            if name not in inputs and (isinstance(kind, list) or kind in WIDGETS):
                inputs[name] = next(values)
                if options.get("control_after_generate"):
                    assert next(values) in ("fixed", "randomize", "increment", "decrement")
        assert next(values, None) is None, f"{node['type']} has more widget values than widgets"
        graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return graph


def test_there_is_one_for_the_demo_and_for_each_vision_model():
    stems = {path.stem for path in WORKFLOWS if not path.stem.endswith("_two_ears")}
    # anima: Cosmos-Predict2's network in other weights
    hosted = stems - {"demo", "anima", "anima_adapter", "anima_t5free", "ella", "pixart_pig_clip", *TWINS}
    alone = {"unet", "kolors", "sana", "flux_schnell"}  # any U-Net, no class of the host's, said in the note of flux
    assert hosted == VISION_TARGETS.keys() - alone


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_it_has_a_picture_for_the_template_browser(path: Path):
    with Image.open(path.with_suffix(".jpg")) as picture:
        assert picture.size == (400, 400)


# Whose tiny adapters are small in every width -> the folder of the tiny vision model that hears them.
TWINS = {
    **dict.fromkeys(("rouwei_gemma", "rouwei_t5gemma"), "tiny-rouwei"),
    "qwen_sdxl_adapter": "tiny-qwen-sdxl",
    "distill_t5": "tiny-flux-clip",
}
MODEL_LOADERS = ("CheckpointLoaderSimple", "UNETLoader")
FILES = re.compile(r"_name$|^model$|^bridge$")  # widgets that name a file or a folder
CHOICES = {"sampler_name"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_note_says_where_every_file_goes(server, path, base):
    """In a folder of models/ where the loader finds it."""
    (note,) = [node["widgets_values"][0] for node in read(path)["nodes"] if node["type"] in DECORATION]
    rows = re.findall(r"^\| `([^`]+?)/?`[^|]*\| `models/([^`]+)` \|$", note, re.MULTILINE)
    named = {
        value
        for node in read(path.parent / "api" / path.name).values()
        for key, value in node["inputs"].items()
        if FILES.search(key) and key not in CHOICES and isinstance(value, str)
    }
    assert named == {name for name, _ in rows}
    for name, folder in rows:
        assert (base / "models" / folder / name).exists(), (folder, name)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_links_of_models_are_of_files_that_the_graph_names(path):
    """As the front end reads them, which offers a file that is missing; the note says where the others are."""
    nodes = read(path)["nodes"]
    (note,) = [node["widgets_values"][0] for node in nodes if node["type"] in DECORATION]
    assert path.stem.startswith("demo") or note.count("https://huggingface.co/") >= 2
    for node in nodes:
        for model in node["properties"].get("models", []):
            assert model["name"] in node["widgets_values"]
            assert re.search(
                rf"^\| `{re.escape(model['name'])}`.*\| `models/{model['directory']}` \|$", note, re.MULTILINE
            )
            assert model["url"].startswith("https://huggingface.co/") and model["url"].endswith(".safetensors")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_both_forms_say_the_same(server, path):
    api = read(path.parent / "api" / path.name)
    needs_its_nodes(server, path)
    for node in api.values():
        node.pop("_meta")
    assert api_form(read(path), server.get("/object_info")) == api


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_wires_join_slots_of_one_type(server, path):
    workflow, object_info = read(path), server.get("/object_info")
    needs_its_nodes(server, path)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert max(nodes) == workflow["last_node_id"] and len(nodes) == len(workflow["nodes"])
    assert max(link[0] for link in workflow["links"]) == workflow["last_link_id"]
    for number, source, out_slot, target, in_slot, kind in workflow["links"]:
        output, socket = nodes[source]["outputs"][out_slot], nodes[target]["inputs"][in_slot]
        assert number in output["links"] and socket["link"] == number
        assert output["type"] == kind == object_info[nodes[source]["type"]]["output"][out_slot]
        assert socket["type"] in (kind, "*")
        assert nodes[source]["order"] < nodes[target]["order"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_nodes_do_not_overlap(path):
    boxes = [(*node["pos"], *node["size"]) for node in read(path)["nodes"]]
    for i, (x, y, w, h) in enumerate(boxes):
        for other_x, other_y, other_w, other_h in boxes[:i]:
            apart = x + w <= other_x or other_x + other_w <= x or y + h <= other_y - 30 or other_y + other_h <= y - 30
            assert apart, (boxes[i], (other_x, other_y, other_w, other_h))


# The host's own detection knows the true sizes of these alone: the tiny model is loaded from its folder.
FROM_FOLDERS = {Path(file).name: name for name, file in DITS.values() if file.endswith(".safetensors")}
SIDES = {"pixart": 320, "pixart_pig_clip": 320}  # pixels; elsewhere 128. ComfyUI's PixArt cannot do less than 264.


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_it_runs(server, path):
    """As it is shipped, but for the size of the picture and the number of steps."""
    graph, side = read(path.parent / "api" / path.name), SIDES.get(path.stem, 128)
    older = needs_its_nodes(server, path)
    loaded = [[name, 0] for name, node in graph.items() if node["class_type"] in MODEL_LOADERS]
    decoded = path.stem not in ("flux2", "ernie_image") and not (older and path.stem in VIDEO)
    for node in graph.values():
        if node["class_type"] == "KSampler":
            node["inputs"]["steps"] = 2
        if "width" in node["inputs"]:
            node["inputs"] |= {"width": side, "height": side}
        if path.stem in TWINS and node["inputs"].get("model") in loaded:
            node["inputs"]["model"] = ["twin", 0]
        if (name := FROM_FOLDERS.get(node["inputs"].get("unet_name", ""))) is not None:
            node |= {"class_type": "LaViBridgeLoadVisionModel", "inputs": {"model": name}}
        if not decoded and node["class_type"] == "VAEDecode":
            node |= {
                "class_type": "SaveLatent",
                "inputs": {"samples": node["inputs"]["samples"], "filename_prefix": "l"},
            }
    if path.stem in TWINS:
        graph["twin"] = {"class_type": "LaViBridgeLoadVisionModel", "inputs": {"model": TWINS[path.stem]}}
    if not decoded:
        graph = {name: node for name, node in graph.items() if node["class_type"] != "SaveImage"}
    outcome = server.run(graph)
    if older and path.stem == "z_image":
        assert "it needs a newer ComfyUI" in outcome.error
        return
    assert not outcome.error, outcome.error
    if not decoded:
        assert outcome.latents[0].isfinite().all() and outcome.latents[0].std() > 0
        return
    assert outcome.images[0].shape == (side, side, 3) and outcome.images[0].float().std() > 0
    assert "tokens" in outcome.texts[0]


def test_the_host_offers_them_as_templates(server):
    assert sorted(server.get("/workflow_templates")[PACK]) == [path.stem for path in WORKFLOWS]
