"""A bridge to a vision model that takes the pooled vector of another encoder, as Flux that of CLIP-L."""

# pyright: reportMissingImports=false

from __future__ import annotations

import importlib
from dataclasses import replace

import torch
from host_side import MODELS, PROMPTS, check, connected, language_model, node_classes, refused, vision_, vision_model_

core = importlib.import_module("hyphen-pack.lavi_core.checkpoint")
NAME = "dit-flux"


def without_pooled():
    """The bridge to Flux without its pooled head; the width that the head gave."""
    folder = MODELS / "lavi_bridges"
    was = core.BridgeCheckpoint.load(folder / f"{NAME}.safetensors")
    width = was.config.adapter.pooled_width
    config = replace(
        was.config,
        adapter=replace(was.config.adapter, pooled_width=None),
        vision=replace(was.config.vision, other_pooled=width),
    )
    adapter = {name: tensor for name, tensor in was.adapter.items() if not name.startswith("pooled.")}
    file = folder / "other-pooled.safetensors"
    core.BridgeCheckpoint(config, adapter, was.language_lora, was.vision_lora).save(file)
    return file, width


@check
def the_pooled_vector_of_another_encoder_goes_with_the_prompt():
    file, width = without_pooled()
    try:
        language = language_model("bert")
        bridge, whole = connected("other-pooled", language), connected(NAME, language)
        (context, more), *_ = whole.encode(PROMPTS[0])[0]
        pooled = [[torch.zeros(1, 77, 768), {"pooled_output": more["pooled_output"]}]]
        encode = node_classes["LaViBridgeTextEncode"].execute
        for _ in range(2):  # the second time as it was remembered
            ((ours, told),) = encode(bridge, PROMPTS[0], pooled=pooled).args[0]
            assert torch.equal(ours, context) and torch.equal(told["pooled_output"], more["pooled_output"])
        other = [[pooled[0][0], {"pooled_output": -more["pooled_output"]}]]
        assert torch.equal(
            encode(bridge, PROMPTS[0], pooled=other).args[0][0][1]["pooled_output"], -more["pooled_output"]
        )
        model = vision_model_.load(MODELS / "diffusers" / NAME)
        assert vision_.apply(model, bridge, 1.0).patches.keys() == vision_.apply(model, whole, 1.0).patches.keys()

        says = f"takes a pooled vector of width {width} from another encoder"
        refused([says, "nothing is connected"], encode, bridge, PROMPTS[0])
        refused([says, "has none"], lambda: encode(bridge, PROMPTS[0], pooled=[[context, {}]]))
        wide = [[context, {"pooled_output": torch.zeros(1, width + 1)}]]
        refused([says, f"one of width {width + 1}"], lambda: encode(bridge, PROMPTS[0], pooled=wide))
        refused(["take Bridge Text Encode"], bridge.clip.tokenize, PROMPTS[0])
        refused(["would not be heard: disconnect it"], lambda: encode(whole, PROMPTS[0], pooled=pooled))
    finally:
        file.unlink()
