"""A model with one bridge's LoRA that hears another's prompts is told of; what is meant so is not."""

# pyright: reportMissingImports=false

from __future__ import annotations

import importlib
import json

import comfy.sampler_helpers
import torch
from check_connectors import SHAPE, bridge_of, drawn
from check_save import written
from comfy_extras import nodes_train
from host_side import MODELS, PROMPTS, Lines, check, connected, language_model, vision_, vision_model_
from safetensors.torch import save_file

import nodes as stock

brought_lora_ = importlib.import_module("hyphen-pack.nodes.brought_lora")
same_bridge_ = importlib.import_module("hyphen-pack.nodes.same_bridge")
SAVED = {"3": {"class_type": "ModelSave", "inputs": {"model": ["1", 0]}}}
TOLD = "the prompts come from another bridge"


@check
def prompts_of_another_bridge_are_told_of():
    ours, other = connected("sd1", language_model("bert")), bridge_of("timed-sd1")
    copy = written(ours)
    try:
        saved = [connected("saved", language_model("bert")).encode(text)[0] for text in PROMPTS[:2]]
    finally:
        copy.unlink()
    mine, theirs = ([b.encode(text)[0] for text in PROMPTS[:2]] for b in (ours, other))
    bare = [[[context, {k: v for k, v in rest.items() if k != same_bridge_.OF}]] for ((context, rest),) in theirs]
    whole, window = (
        vision_.apply(vision_model_.load(MODELS / "diffusers" / "tiny-sd1"), ours, 1.0, **more)
        for more in ({}, {"start": 0.2})
    )
    for model, sides, told in (
        (whole, mine, False),
        (whole, theirs, True),
        (whole, (mine[0], theirs[1]), False),  # a negative prompt of another ear
        (whole, (mine[0] + theirs[0], theirs[1]), False),
        (whole, bare, False),  # of a stock CLIP
        (whole, saved, False),  # the same bridge
        (window, mine, False),
        (window, theirs, True),
    ):
        with Lines(TOLD) as lines:
            drawn(model, ours, SHAPE, sides=sides)
        assert len(lines) == told, (sides, lines)
        assert not lines or "this model has the LoRA of" in lines[0]


@check
def a_lora_that_is_added_once_more_after_apply_bridge_is_told_of():
    bridge = connected("sd1", language_model("bert"))
    sides = [bridge.encode(text)[0] for text in PROMPTS[:2]]
    plain = vision_model_.load(MODELS / "diffusers" / "tiny-sd1")
    for more in ({}, {"start": 0.2}):
        once = vision_.apply(plain, bridge, 1.0, **more)
        twice = stock.LoraLoaderModelOnly().load_lora_model_only(once, "exported-sd1.safetensors", 0.5)[0]
        for model, told in ((once, 0), (twice, 1)):
            with Lines("once more from a LoRA loader") as lines:
                drawn(model, bridge, SHAPE, sides=sides)
            assert len(lines) == told, (more, lines)


@check
def a_graph_tells_which_model_hears_what():
    """Whose LoRA a model has, which of two models samples a prompt, and which of them follows a bridge in time."""
    has = {"prompt": json.dumps({"1": {"class_type": "LaViBridgeApply", "inputs": {"model": ["2", 0]}}, **SAVED})}
    merged = MODELS / "diffusion_models" / "merged-with-sd1.safetensors"
    save_file({"a": torch.zeros(1)}, merged, has)
    needs, same_bridge_._NEEDS = same_bridge_._NEEDS, {}
    lora = brought_lora_.first_rows(connected("sd1", language_model("bert")).vision_lora)
    same_bridge_._NEEDS |= {"timed": same_bridge_.Needs(True, []), "plain": same_bridge_.Needs(False, lora)}
    loader, apply = "LaViBridgeLoad", "LaViBridgeApply"

    def told(bridge, model, second=None):
        graph = {
            "timed": (loader, {"bridge": "timed"}),
            "plain": (loader, {"bridge": "plain"}),
            "yes": ("LaViBridgeTextEncode", {"bridge": ["timed", 0]}),
            "no": ("LaViBridgeTextEncode", {"bridge": ["plain", 0]}),
            "base": ("UNETLoader", {"unet_name": "tiny.safetensors"}),
            "saved": ("UNETLoader", {"unet_name": merged.name}),
            "by timed": (apply, {"model": ["base", 0], "bridge": ["timed", 0]}),
            "by plain": (apply, {"model": ["base", 0], "bridge": ["plain", 0]}),
            "first": ("ModelMergeSimple", {"model1": ["by timed", 0], "model2": ["base", 0]}),
            "last": ("ModelMergeSimple", {"model1": ["base", 0], "model2": ["by timed", 0]}),
            "sampler": ("DualModelGuider", {"positive": ["yes", 0], "negative": ["no", 0], "model": [model, 0]}),
        }
        if second:
            graph["sampler"][1]["model_negative"] = [second, 0]
        nodes = {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in graph.items()}
        return same_bridge_._not_applied(nodes, bridge, bridge)

    try:
        assert not told("timed", "by timed") and not told("timed", "first")
        for model in ("base", "by plain", "last"):
            assert "gives another context at each timestep" in told("timed", model), model
        assert "has not the LoRA of plain" in told("plain", "base") and not told("plain", "by plain")
        assert not told("plain", "saved")
        assert "has not the LoRA of plain" in told("plain", "by plain", "base")
        assert not told("plain", "by timed", "by plain") and not told("timed", "by timed", "by plain")
    finally:
        same_bridge_._NEEDS = needs
        merged.unlink()


@check
def nodes_that_walk_through_a_conditioning_come_to_its_end():
    """As the host's trainer of LoRAs does."""
    for name in ("sd1", "timed-sd1"):
        given = comfy.sampler_helpers.convert_cond(connected(name, language_model("bert")).encode(PROMPTS[0])[0])
        (found,) = nodes_train.process_cond_list({"positive": given})["positive"]
        assert found["lavi_bridge"].tokens


@check
def a_lora_loader_is_known_by_its_file():
    """Whichever name it has for it; a file that cannot be read may be the bridge's."""
    rows = brought_lora_.first_rows(connected("sd1", language_model("bert")).vision_lora)
    for inputs, brings in (
        ({"lora_name": "exported-sd1.safetensors"}, True),
        ({"lora_name": "exported-pixart.safetensors"}, False),
        ({"lora_1": {"on": True, "lora": "exported-pixart.safetensors"}}, False),
        ({"lora_1": {"lora": "exported-pixart.safetensors"}, "lora_2": {"lora": "exported-sd1.safetensors"}}, True),
        ({"lora_name": "../loras/exported-sd1.safetensors", "strength_model": 1.0}, True),
        ({"lora_name": ["elsewhere", 0]}, True),
        ({"text": "<lora:style:0.8> " * 30}, True),  # longer than a file's name can be
    ):
        assert brought_lora_.may_bring(inputs, rows) is brings, inputs
