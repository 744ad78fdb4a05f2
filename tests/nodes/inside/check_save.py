"""A bridged pipeline is saved as a bridge file that says and draws the same; savers of a CLIP are refused."""

# pyright: reportMissingImports=false

from __future__ import annotations

import importlib
from pathlib import Path

import folder_paths
import torch
from comfy_extras import nodes_model_merging
from host_side import (
    MODELS,
    Lines,
    check,
    connected,
    context,
    language_model,
    node_classes,
    refused,
    vision_,
    vision_model_,
)

import nodes as stock

lora_ = importlib.import_module("hyphen-pack.nodes.lora")
save_ = importlib.import_module("hyphen-pack.nodes.save")
core = importlib.import_module("hyphen-pack.lavi_core.checkpoint")


def written(bridge, model=None, name="saved"):
    """What Save Bridge writes, as a bridge in the folder of bridges; the caller takes it away."""
    output = node_classes["LaViBridgeSave"].execute(bridge, f"lavi_bridges/{name}", model).args[0]
    target = MODELS / "lavi_bridges" / f"{name}.safetensors"
    Path(output).replace(target)
    assert Path(output).is_relative_to(folder_paths.get_output_directory())
    return target


@check
def a_lora_on_the_other_encoder_of_its_clip_is_none_of_the_bridges():
    """Of a CLIP of two, the patcher has the patches of both."""
    bridge = connected("llama", strength=0.7)
    plain = save_.saved(bridge, None).language_lora
    bridge.patcher.patches["clip_g.transformer.weight"] = [(1.0, ("diff", (torch.zeros(1),)), 1.0, None, None)]
    found = save_.saved(bridge, None).language_lora
    assert plain.keys() == found.keys() and plain


@check
def what_is_saved_says_the_same():
    for kind in ("llama", "gpt2", "t5"):
        bridge = connected(kind, strength=0.7)
        file = written(bridge)
        try:
            again = connected("saved", language_model(kind), strength=1.0)
            torch.testing.assert_close(context(again), context(bridge), rtol=1e-4, atol=1e-5)
            assert (context(again) - context(connected(kind, strength=0.0))).abs().max() > 1e-3
            assert again.config.provenance["saved from"] == f"{kind}.safetensors"
        finally:
            file.unlink()


@check
def loras_of_both_sides_are_saved_with_their_strengths():
    model = language_model("llama").clone()
    folder = MODELS / "loras" / "peft-llama"
    lora_.add_to_language_model(model, model.patcher, lora_.read(folder, model.encoder.model), 0.3)
    bridge = connected("llama", model, strength=0.5)
    network = vision_model_.load(MODELS / "diffusers" / "tiny-flow")
    bridged = vision_.apply(network, bridge, 0.6)
    file = written(bridge, bridged)
    try:
        again = connected("saved", language_model("llama"), strength=1.0)
        torch.testing.assert_close(context(again), context(bridge), rtol=1e-4, atol=1e-5)
        ranks = {delta.down.shape[0] for delta in core.BridgeCheckpoint.load(file).language_lora.values()}
        own = {delta.down.shape[0] for delta in bridge_file("llama").language_lora.values()}
        assert max(ranks) > max(own)  # two LoRAs at one place
        drawn, redrawn = (predict(vision_.apply(network, bridge, 0.6)), predict(vision_.apply(network, again, 1.0)))
        torch.testing.assert_close(redrawn, drawn, rtol=1e-4, atol=1e-5)
        assert (predict(network) - drawn).abs().max() > 1e-4
    finally:
        file.unlink()


@check
def a_bridge_of_half_precision_stays_one_where_nothing_is_scaled():
    source = bridge_file("llama")
    halves = MODELS / "lavi_bridges" / "half.safetensors"
    for dtype in (torch.float16, torch.bfloat16):
        loras = [
            {path: delta._replace(down=delta.down.to(dtype), up=delta.up.to(dtype)) for path, delta in found.items()}
            for found in (source.language_lora, source.vision_lora)
        ]
        adapter = {name: tensor.to(dtype) for name, tensor in source.adapter.items()}
        core.BridgeCheckpoint(source.config, adapter, *loras).save(halves)
        for strength, size in ((1.0, 2), (0.3, 4)):
            bridge = connected("half", language_model("llama"), strength=strength)
            file = written(bridge)
            try:
                saved = core.BridgeCheckpoint.load(file)
                assert {tensor.dtype.itemsize for tensor in saved.adapter.values()} == {2}
                assert {delta.up.dtype.itemsize for delta in saved.language_lora.values()} == {size}, strength
                again = connected("saved", language_model("llama"), strength=1.0)
                torch.testing.assert_close(context(again), context(bridge), rtol=1e-4, atol=1e-5)
            finally:
                file.unlink()
    halves.unlink()


def bridge_file(kind):
    return core.BridgeCheckpoint.load(MODELS / "lavi_bridges" / f"{kind}.safetensors")


def predict(model):
    import comfy.model_management

    comfy.model_management.load_models_gpu([model])
    torch.manual_seed(0)
    x, heard = torch.randn(1, 4, 8, 8), torch.randn(1, 7, 24)
    return model.model.apply_model(x, torch.tensor([0.7]), c_crossattn=heard).float()


@check
def what_no_bridge_can_hold_is_refused():
    bridge = connected("bert")
    network = vision_model_.load(MODELS / "diffusers" / "tiny-flow").clone()
    name = next(name for name in network.model.state_dict() if name.endswith("proj_in.weight"))
    network.add_patches({name: ("diff", (torch.zeros_like(network.model.state_dict()[name]),))})
    refused(("this model is patched at", "take those out"), written, bridge, network)


@check
def savers_of_a_clip_are_refused():
    clip = connected("bert").clip
    way = ("would leave its adapter out", "Save Bridge")
    before = set(Path(folder_paths.get_output_directory()).rglob("*"))
    refused(way, nodes_model_merging.CLIPSave().save, clip, "clip/x")
    model = vision_model_.load(MODELS / "diffusers" / "tiny-flow")
    refused(way, nodes_model_merging.CheckpointSave().save, model, clip, None, "checkpoints/x")
    assert not [path for path in set(Path(folder_paths.get_output_directory()).rglob("*")) - before if path.is_file()]
    assert stock.CLIPTextEncode().encode(clip, "sea")


@check
def a_model_that_was_saved_with_its_bridge_is_told():
    """By the graph in its header, of which hosts before 0.33 do not remember the file."""
    bridge = connected("sd1", language_model("bert"))
    plain = stock.CheckpointLoaderSimple().load_checkpoint("tiny-sd1.safetensors")[0]
    graph = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiny-sd1.safetensors"}},
        "2": {"class_type": "LaViBridgeLoad", "inputs": {"bridge": "sd1.safetensors", "language_lora": 1.0}},
        "3": {"class_type": "LaViBridgeApply", "inputs": {"model": ["1", 0], "bridge": ["2", 0], "strength": 1.0}},
        "4": {"class_type": "ModelSave", "inputs": {"model": ["3", 0], "filename_prefix": "diffusion_models/told"}},
    }
    for apply in ({"strength": 1.0}, {"strength": 0.0}, {"end_percent": 0.5}):
        graph["3"]["inputs"] |= {"strength": 1.0, "end_percent": 1.0} | apply
        nodes_model_merging.ModelSave().save(vision_.apply(plain, bridge, 1.0), "diffusion_models/told", graph)
        written = sorted(Path(folder_paths.get_output_directory(), "diffusion_models").glob("told*.safetensors"))[-1]
        target = MODELS / "diffusion_models" / "told.safetensors"
        written.replace(target)
        try:
            again = stock.UNETLoader().load_unet(target.name, "default")[0]
            with Lines() as lines:
                vision_.apply(again, bridge, 1.0)
            told = apply != {"strength": 0.0} and getattr(again, "cached_patcher_init", None) is not None
            assert [("saved from a graph" in line and "sd1.safetensors" in line) for line in lines] == [True] * told
        finally:
            target.unlink()


@check
def a_model_without_apply_bridge_saves_no_lora_and_says_so():
    bridge = connected("sd1", language_model("bert"))
    plain = vision_model_.load(MODELS / "diffusers" / "tiny-sd1")
    for model, told in ((plain, True), (vision_.apply(plain, bridge, 1.0), False), (None, False)):
        with Lines() as lines:
            file = written(bridge, model)
        try:
            assert bool(core.BridgeCheckpoint.load(file).vision_lora) is not told
            assert ["the saved bridge has no LoRA for its vision model" in line for line in lines] == [True] * told
        finally:
            file.unlink()
