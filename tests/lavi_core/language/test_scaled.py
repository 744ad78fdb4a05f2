"""Scaled float8 files: values are float8 times their factor, in each form that users of ComfyUI have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.lavi_core.language.facts import differing
from lavi_bridge.lavi_core.prompt import PromptRecipe
from lavi_bridge.lavi_core.quantized.modules import quantized
from safetensors.torch import load_file, save_file

RECIPE = PromptRecipe(max_length=20)
FP8 = torch.float8_e4m3fn


def say(encoder: TextEncoder) -> torch.Tensor:
    return encoder(encoder.tokenize(["a red circle left of a blue square", "sea"], RECIPE), RECIPE).states


def json_bytes(value: Any) -> torch.Tensor:
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)


def quantise(folder: Path, target: Path, form: str) -> dict[str, torch.Tensor]:
    """A float8 copy of the folder, whose other files lie beside it; -> what its tensors are worth."""
    plain, stored, worth, layers = load_file(folder / "model.safetensors"), {}, {}, {}
    for name, tensor in plain.items():
        if tensor.ndim != 2:
            stored[name] = worth[name] = tensor
            continue
        factor = (tensor.abs().max() / 400).float()
        stored[name] = (tensor / factor).to(FP8)
        worth[name] = stored[name].float() * factor
        layer = name.removesuffix(".weight")
        layers[layer] = {"format": "float8_e4m3fn"}
        if form == "scale_weight":
            stored[f"{layer}.scale_weight"] = factor
            stored[f"{layer}.scale_input"] = torch.tensor(3.0)
        else:
            stored[f"{layer}.weight_scale"] = factor.reshape(1)
            stored[f"{layer}.input_scale"] = torch.tensor(3.0)
        if form == "comfy_quant":
            stored[f"{layer}.comfy_quant"] = json_bytes(layers[layer])
    header = {"_quantization_metadata": json.dumps({"layers": layers})} if form == "header" else None
    if form == "scale_weight":
        stored["scaled_fp8"] = torch.zeros(2, dtype=FP8)
    save_file(stored, target, header)
    shutil.copytree(folder, target.with_suffix(""), ignore=shutil.ignore_patterns("*.safetensors"))
    return worth


@pytest.mark.parametrize("form", ["scale_weight", "comfy_quant", "header"])
@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_values_are_multiplied_by_their_factor(language_folder, tmp_path, kind, form):
    folder, file = language_folder(kind), tmp_path / "scaled.safetensors"
    worth = quantise(folder, file, form)
    save_file(worth, tmp_path / "wide.safetensors")
    golden = TextEncoder.load(tmp_path / "wide.safetensors", config=tmp_path / "scaled")
    ours = TextEncoder.load(file)
    assert torch.equal(say(ours), say(golden))
    held = sum({id(m.blocks): m.blocks.nbytes for _, m in quantized(ours.model)}.values())
    assert held == sum(p.numel() for p in golden.parameters() if p.ndim == 2)  # a byte each
    plain = TextEncoder.load(folder).config
    assert differing(ours.config.facts, plain.facts) is None and ours.config.fingerprint == plain.fingerprint
    skeleton = TextEncoder.skeleton(file).config
    assert (skeleton.fingerprint, skeleton.facts) == (ours.config.fingerprint, ours.config.facts)
    TextEncoder.verify(file)


def test_a_folder_may_hold_them(language_folder, tmp_path):
    folder = language_folder("llama")
    worth = quantise(folder, tmp_path / "x.safetensors", "scale_weight")
    shutil.move(tmp_path / "x.safetensors", tmp_path / "x" / "model.safetensors")
    ours = TextEncoder.load(tmp_path / "x")
    weight = ours.model.get_submodule("layers.0.mlp.up_proj")[:]
    assert torch.equal(weight, worth["model.layers.0.mlp.up_proj.weight"])
    with pytest.raises(ValueError, match="has scaled float8 weights, which cannot be streamed; load it whole"):
        TextEncoder.load(tmp_path / "x", stream=True)


@pytest.mark.parametrize(
    ("name", "tensor", "says"),
    [
        ("model.layers.0.mlp.up_proj.comfy_quant", json_bytes({"format": "nvfp4"}), "up_proj in nvfp4"),
        ("model.layers.0.mlp.up_proj.weight_scale", torch.ones(64), "up_proj.weight_scale"),
        ("model.layers.0.mlp.up_proj.weight_scale_2", torch.ones(()), "up_proj.weight_scale_2"),
        ("model.layers.0.mlp.up_proj.comfy_quant", torch.zeros(3, dtype=torch.uint8), "up_proj in None"),
        ("model.layers.0.mlp.other.scale_weight", torch.ones(()), "other.scale_weight"),
    ],
)
def test_other_scales_are_refused(language_folder, tmp_path, name, tensor, says):
    folder = language_folder("llama")
    file = tmp_path / "x.safetensors"
    shutil.copytree(folder, tmp_path / "x", ignore=shutil.ignore_patterns("*.safetensors"))
    save_file({**load_file(folder / "model.safetensors"), name: tensor}, file)
    for use in (TextEncoder.load, TextEncoder.verify):
        with pytest.raises(ValueError, match=f"has scaled weights .*{says}.*CLIPLoader and Language Model from CLIP"):
            use(file)


@pytest.mark.parametrize("place", ["folder", "file"])
def test_a_t5_whose_words_have_the_decoders_name_alone(language_folder, tmp_path, place):
    """A shared table is written once, under whichever of its names comes first."""
    folder = language_folder("t5")
    state = load_file(folder / "model.safetensors")
    shared = next(name for name in state if name in ("shared.weight", "encoder.embed_tokens.weight"))
    state["decoder.embed_tokens.weight"] = state.pop(shared)
    path = tmp_path / ("t5" if place == "folder" else "t5.safetensors")
    shutil.copytree(folder, tmp_path / "t5", ignore=shutil.ignore_patterns("*.safetensors"))
    save_file(state, tmp_path / "t5" / "model.safetensors" if place == "folder" else path)
    ours, plain = TextEncoder.load(path), TextEncoder.load(folder)
    assert torch.equal(say(ours), say(plain)) and ours.config.fingerprint == plain.config.fingerprint
    assert TextEncoder.skeleton(path).config.fingerprint == plain.config.fingerprint
