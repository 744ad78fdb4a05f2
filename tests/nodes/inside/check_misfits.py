"""What is refused, and how: vision models that the host cannot be, and bridges on models they were not made for."""

# pyright: reportMissingImports=false

from __future__ import annotations

import importlib
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import torch
from check_vision import bridge_to, ours, stocks
from host_side import (
    BASE,
    MODELS,
    check,
    connected,
    language_model,
    pixart_,
    refused,
    unet_,
    vision_,
    vision_model_,
    vision_targets,
)

checkpoint_ = importlib.import_module("hyphen-pack.lavi_core.checkpoint")


def config_of(name, part):
    return json.loads((MODELS / "diffusers" / name / part / "config.json").read_text())


@check
def a_unet_that_the_host_cannot_be():
    config, row = config_of("tiny-flow", "unet"), vision_targets()["unet"]
    wrong = {"act_fn": "gelu", "block_out_channels": [64, 96], "attention_head_dim": [1, 4]}
    wrong |= {"down_block_types": ["AttnDownBlock2D", "DownBlock2D"], "layers_per_block": [1, 2]}
    for key, value in wrong.items():
        refused(["ComfyUI"], unet_.shape, config | {key: value}, row)


@check
def a_pixart_that_the_host_cannot_be():
    config, row = config_of("tiny-pixart", "transformer"), vision_targets()["pixart"]
    for key, value in {"norm_eps": 1e-5, "cross_attention_dim": 64, "out_channels": 5}.items():
        refused(["ComfyUI", str(value)], pixart_.shape, config | {key: value}, row)


@check
def a_folder_that_does_not_say_enough():
    flow = MODELS / "diffusers" / "tiny-flow"
    weights = "diffusion_pytorch_model.safetensors"
    for missing, change in (("latent_scale", {"latent_scale": None}), ("scheduler_config.json", {})):
        with tempfile.TemporaryDirectory(dir=BASE) as folder:
            silent = Path(folder)
            (silent / "unet").mkdir()
            (silent / "unet" / "config.json").write_text(json.dumps(config_of("tiny-flow", "unet") | change))
            (silent / "unet" / weights).symlink_to(flow / "unet" / weights)
            if missing == "latent_scale":
                (silent / "scheduler").symlink_to(flow / "scheduler")
            refused([missing], vision_model_.load, silent)
    assert vision_model_.is_vision_model(flow) and not vision_model_.is_vision_model(MODELS / "LLM" / "tiny-bert")


@check
def a_bridge_on_another_vision_model():
    """Both sides are named, whatever the LoRA's strength, and for a bridge without a vision LoRA too."""
    sd3 = comfy.sd.load_diffusion_model(str(MODELS / "diffusion_models" / "tiny-sd3.safetensors"))
    assert type(sd3.model).__name__ == "SD3"
    sdxl, sd1, pixart = stocks("sdxl"), stocks("sd1"), stocks("pixart")
    for name, model, words in (
        ("sd1", sdxl, ["tiny-sd1", "768", "SDXL", "2048"]),
        ("sdxl", sd1, ["tiny-sdxl", "2048", "BaseModel", "768"]),
        ("unpooled", sdxl, ["tiny-sdxl", "no pooled vector", "SDXL", "1280"]),
        ("sized", sdxl, ["tiny-sized", "24", "SDXL", "2048"]),
        ("pixart", sd3, ["tiny-pixart", "4096", "SD3", "PixArtMS"]),
        ("bare-pixart", sd3, ["tiny-pixart", "4096", "SD3", "PixArtMS"]),
        ("pixart", sdxl, ["tiny-pixart", "SDXL", "PixArtMS"]),
        ("sd1", pixart, ["tiny-sd1", "768", "PixArt", "UNetModel"]),
        ("small-pixart", pixart, ["small-pixart", "48", "PixArt", "4096"]),
        ("ldm", sd1, ["tiny-ldm", "1280", "BaseModel", "768"]),
        ("flow", ours("sized"), ["no pooled vector", "SDXL", "12"]),
        ("pooled", ours("flow"), ["pooled vector of width 12", "BaseModel", "no pooled"]),
    ):
        for strength in (1.0, 0.0):
            refused([f"{name}.safetensors", *words], vision_.apply, model, bridge_to(name), strength)


@check
def a_bridge_on_the_refiner_of_sdxl():
    """The host's class in its context and pooled widths, which a bridge could have; and its diffusers folder."""
    shape = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "channel_mult": [1, 2]}
    shape |= {"num_res_blocks": [1, 1], "transformer_depth": [0, 1], "transformer_depth_output": [0, 0, 1, 1]}
    shape |= {"transformer_depth_middle": 1, "context_dim": 1280, "adm_in_channels": 2560, "num_classes": "sequential"}
    shape |= {"use_linear_in_transformer": True, "use_spatial_transformer": True, "num_head_channels": 16}
    described = comfy.supported_models.SDXLRefiner(shape | {"legacy": False})
    described.set_inference_dtype(torch.float32, None)
    model = described.get_model({}, "")
    assert type(model).__name__ == "SDXLRefiner" and model.adm_channels == 2560
    cpu = torch.device("cpu")
    refiner = comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)
    for name, words in (("sdxl", ["tiny-sdxl", "2048"]), ("ldm", ["tiny-ldm", "1280"])):
        for strength in (1.0, 0.0):
            refused(
                [f"{name}.safetensors", *words, "SDXL's refiner"], vision_.apply, refiner, bridge_to(name), strength
            )
    told = {"addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2560, "cross_attention_dim": 1280}
    with tempfile.TemporaryDirectory(dir=BASE) as folder:
        silent = Path(folder)
        (silent / "unet").mkdir()
        (silent / "unet" / "config.json").write_text(json.dumps(config_of("tiny-sdxl", "unet") | told))
        refused(["SDXL's refiner", "2048"], vision_model_.load, silent)


@check
def a_bridge_on_another_language_model():
    words = ["made for tiny-t5", "t5", "tiny-llama", "llama"]
    refused(words, connected, "t5", language_model("llama"))


@check
def a_bridge_to_a_model_that_comfyui_has_no_class_for():
    """And a folder of such a model, which is listed, so that one is told why."""
    words = ["ComfyUI has no class", "lavi-bridge (train, sample)"]
    path = MODELS / "lavi_bridges" / "sana.safetensors"
    made = checkpoint_.BridgeCheckpoint.load(MODELS / "lavi_bridges" / "bert.safetensors")
    vision = replace(made.config.vision, target="sana", model_id="Sana_600M")
    checkpoint_.BridgeCheckpoint(replace(made.config, vision=vision, vision_lora=None), made.adapter, {}, {}).save(path)
    try:
        bridge = connected("sana", language_model("bert"))
        model = vision_model_.load(MODELS / "diffusers" / "tiny-flow")
        refused(["Sana_600M", "is of sana", *words], vision_.apply, model, bridge, 1.0)
    finally:
        path.unlink()
    for name, part in (("sana", "transformer"), ("kolors", "unet")):
        row = vision_targets()[name]
        config = {"_class_name": row.diffusers_class, **row.told_by}
        with tempfile.TemporaryDirectory(dir=BASE) as folder:
            for at, said in ((f"{part}/config.json", config), ("scheduler/scheduler_config.json", {"shift": 3.0})):
                (Path(folder) / at).parent.mkdir()
                (Path(folder) / at).write_text(json.dumps(said))
            assert vision_model_.is_vision_model(Path(folder))
            refused([f"is of {name}", *words], vision_model_.load, Path(folder))
