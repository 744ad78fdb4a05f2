"""A U-Net of city96/ComfyUI-GGUF, packed in blocks, is known for what it is, and the bridge's LoRA acts on it."""

# pyright: reportMissingImports=false

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd
import torch
from check_hooks import hook_
from host_side import MODELS, NotHere, check, connected, language_model, refused, vision_
from safetensors.torch import load_file

import nodes as stock

PACK = Path(os.environ.get("COMFYUI_GGUF_PATH", Path.home() / "comfy" / "ComfyUI-GGUF"))


def gguf_pack():
    if "gguf_pack" not in sys.modules:
        if not (PACK / "nodes.py").is_file() or importlib.util.find_spec("gguf") is None:
            raise NotHere(f"no ComfyUI-GGUF in {PACK} (set COMFYUI_GGUF_PATH), or no gguf package in the host's Python")
        spec: Any = importlib.util.spec_from_file_location(
            "gguf_pack", PACK / "__init__.py", submodule_search_locations=[str(PACK)]
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules["gguf_pack"] = module
        spec.loader.exec_module(module)
    return importlib.import_module("gguf_pack.nodes")


def packed_unet(path):
    """The tiny Stable Diffusion 1, its matrices in Q8_0, under the names that the pack's converter writes."""
    import gguf

    prefix = "model.diffusion_model."
    state = load_file(MODELS / "checkpoints" / "tiny-sd1.safetensors")
    writer = gguf.GGUFWriter(str(path), "sd1")
    row = gguf.GGMLQuantizationType.Q8_0
    for name, tensor in state.items():
        if not name.startswith(prefix):
            continue
        values = tensor.float().numpy()
        if values.ndim == 2 and values.shape[1] % 32 == 0:
            writer.add_tensor(name.removeprefix(prefix), gguf.quants.quantize(values, row), raw_dtype=row)
        else:
            writer.add_tensor(name.removeprefix(prefix), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def packed():
    path = MODELS / "diffusion_models" / "tiny-sd1-packed.gguf"
    loader = gguf_pack().UnetLoaderGGUF()
    packed_unet(path)
    try:
        return loader.load_unet(path.name)[0]
    finally:
        path.unlink()


def predict(model, context):
    comfy.model_management.load_models_gpu([model])
    torch.manual_seed(0)
    x, sigma = torch.randn(1, 4, 8, 8), torch.tensor([1.0])
    return model.model.apply_model(x, sigma, c_crossattn=context).float()


@check
def a_packed_unet_takes_a_bridge_as_the_stock_lora_loader_patches_it():
    model, context = packed(), torch.randn(1, 7, 768)
    bridge = connected("sd1", language_model("bert"))
    plain = predict(model, context)
    bridged = vision_.apply(model, bridge, 0.8)
    ours = predict(bridged, context)
    assert type(bridged).__name__ == "GGUFModelPatcher" and (ours - plain).abs().max() > 1e-3
    stocks = stock.LoraLoaderModelOnly().load_lora_model_only(model, "exported-sd1.safetensors", 0.8)[0]
    torch.testing.assert_close(ours, predict(stocks, context), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(predict(model, context), plain)


@check
def a_packed_unet_of_another_width_is_refused_with_its_true_width():
    model = packed()
    refused(["listens in width 768", "2048"], vision_.apply, model, connected("sdxl", language_model("bert")), 1.0)


@check
def a_packed_unet_takes_no_hook_and_no_part_of_the_sampling():
    """ComfyUI's hooks end in an AttributeError on such weights."""
    model = packed()
    bridge = connected("sd1", language_model("bert"))
    refused(["packed", "whole sampling"], vision_.apply, model, bridge, 0.7, 0.0, 0.5)
    refused(["packed", "whole sampling"], hook_.as_hook, model, bridge, 0.7)
