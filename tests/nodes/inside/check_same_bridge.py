"""A model with one bridge's LoRA that hears another's prompts is told of; what is meant so is not."""

# pyright: reportMissingImports=false

from __future__ import annotations

import importlib

from check_connectors import SHAPE, bridge_of, drawn
from check_save import written
from host_side import MODELS, PROMPTS, Lines, check, connected, language_model, vision_, vision_model_

import nodes as stock

brought_lora_ = importlib.import_module("hyphen-pack.nodes.brought_lora")
same_bridge_ = importlib.import_module("hyphen-pack.nodes.same_bridge")
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
