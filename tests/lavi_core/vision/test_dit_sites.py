"""LoRA sites of the newer vision models: how many at true size, that each feeds the picture, and their file names."""

from __future__ import annotations

import re

import pytest
import torch
from lavi_bridge.lavi_core.conditioning import Conditioning
from lavi_bridge.lavi_core.lora import Delta
from lavi_bridge.lavi_core.vision import VISION_TARGETS, Told, target_of
from lavi_bridge.lavi_core.vision.keys import fused_rows, lora_tensors, read_lora
from lavi_bridge.tests.benchmarks.modern_sizes import VISION, on_meta
from lavi_bridge.tests.training import dits

COUNTS = {  # model: (sites, matrices that ComfyUI patches)
    "sd3-medium": (284, 284),
    "sd35-medium": (336, 336),
    "sd35-large": (452, 452),
    "flux-dev": (418, 418),
    "flux-schnell": (418, 418),
    "z-image": (238, 238),
    "lumina2": (210, 150),  # q, k and v are one there
    "qwen-image": (716, 716),
    "aura-flow": (280, 280),
    "chroma": (418, 418),
    "cosmos-2b": (280, 280),
    "flux2-klein-4b": (100, 100),
    "flux2-klein-9b": (144, 144),
    "wan-1.3b": (300, 300),
    "ernie-image": (252, 252),
    "sana-1.6b": (160, 160),
    "pixart-sigma": (224, 224),
    "kolors": (692, 692),
}
TINY = sorted(dits.FAMILIES)


@pytest.mark.parametrize("name", sorted(VISION))
def test_the_number_of_sites_at_true_size(name: str) -> None:
    row = target_of({"addition_embed_type": None, **dict(on_meta(name).config), **VISION[name]})  # type: ignore[arg-type]
    sites = row.sites(on_meta(name))
    assert (len(sites), len({row.keys.stem(path) for path in sites})) == COUNTS[name]


def test_every_model_of_true_size_is_counted() -> None:
    assert COUNTS.keys() == VISION.keys()


@pytest.mark.parametrize("name", TINY)
def test_what_is_adapted_feeds_the_picture_and_what_is_left_out_does_not(name: str) -> None:
    """Every weight that ``lora_sites`` names gets a gradient but those of ``idle_sites``, which get none."""
    network = dits.filled(dits.FAMILIES[name].build())
    row, family = VISION_TARGETS[name], dits.FAMILIES[name]
    modules = {path: module for path, module in network.named_modules() if re.fullmatch(row.lora_sites, path)}
    sites = row.sites(network)
    assert sites
    for module in modules.values():
        module.weight.requires_grad_(True)
    x = torch.randn(2, family.channels, 8, 12, generator=torch.Generator().manual_seed(1))
    prompt = dits.prompt(2, 9, 14)
    pooled = prompt.pooled.expand(2, -1)
    heard = row.text.hear(Conditioning(prompt.context.expand(2, -1, -1), pooled=pooled))
    told = Told(config=dict(network.config), size=(8 * row.pixels, 12 * row.pixels))  # type: ignore[arg-type]
    t = torch.full((2,), 500.0 if family.scheduler().__class__ is dits.Flow else 500)
    row.predict(network, x, t, heard, told)[:, : x.shape[1]].square().sum().backward()
    dead = [p for p, m in modules.items() if m.weight.grad is None or float(m.weight.grad.abs().max()) == 0]
    assert sorted(dead) == sorted(modules.keys() - set(sites))


@pytest.mark.parametrize("name", sorted(dits.FAMILIES))
def test_a_lora_comes_back_from_its_tensors(name: str) -> None:
    """Deltas written by the names of a file and read again are the same maps; alpha is in them where it has no tensor.
    A fused matrix is what its parts are, one above the other."""
    network = dits.FAMILIES[name].build()
    row = VISION_TARGETS[name]
    g = torch.Generator().manual_seed(1)
    lora = {}
    for path in row.sites(network):
        weight = network.get_submodule(path).weight
        down = torch.randn(3, *weight.shape[1:], generator=g)
        up = torch.randn(len(weight), 3, *[1] * (weight.ndim - 2), generator=g)
        lora[path] = Delta(down, up, 0.5)
    tensors = lora_tensors(lora, row.keys)
    assert all(key.endswith((row.keys.down, row.keys.up, ".alpha")) for key in tensors)
    assert any(key.endswith(".alpha") for key in tensors) == (row.keys.alpha is not None)
    back = read_lora(tensors, list(lora), row.keys, fused_rows(lora, row.keys))
    for path, delta in lora.items():
        assert torch.allclose(dense(back[path]), dense(delta), atol=1e-5)
    if row.keys.fused is not None:
        path = next(path for path in lora if row.keys.part(path) == 0)
        parts = [other for other in lora if row.keys.stem(other) == row.keys.stem(path)]
        whole = [tensors[row.keys.stem(path) + end] for end in (row.keys.up, row.keys.down)]
        assert len(parts) == 3
        assert torch.allclose(whole[0] @ whole[1], torch.cat([dense(lora[part]) for part in parts]), atol=1e-5)
        with pytest.raises(ValueError, match="has 2 of the 3 matrices that ComfyUI keeps as one in diffusion_model"):
            lora_tensors({part: lora[part] for part in parts[:2]}, row.keys)


def dense(delta: Delta) -> torch.Tensor:
    return delta.scale * delta.up.flatten(1) @ delta.down.flatten(1)


def test_names_in_comfyui() -> None:
    block = "transformer_blocks.3"
    for name, path, key in (
        ("sd3", f"{block}.attn.to_out.0", f"transformer.{block}.attn.to_out.0"),
        ("cosmos", f"{block}.attn2.to_out.0", "diffusion_model.blocks.3.cross_attn.output_proj"),
        ("cosmos", f"{block}.attn1.to_k", "diffusion_model.blocks.3.self_attn.k_proj"),
        ("cosmos", f"{block}.ff.net.0.proj", "diffusion_model.blocks.3.mlp.layer1"),
        ("wan", "blocks.3.attn1.to_out.0", "diffusion_model.blocks.3.self_attn.o"),
        ("wan", "blocks.3.ffn.net.0.proj", "diffusion_model.blocks.3.ffn.0"),
        ("lumina2", "layers.3.attn.to_k", "diffusion_model.layers.3.attention.qkv"),
        ("lumina2", "noise_refiner.0.attn.to_out.0", "diffusion_model.noise_refiner.0.attention.out"),
        ("lumina2", "layers.3.feed_forward.linear_2", "diffusion_model.layers.3.feed_forward.w2"),
    ):
        assert VISION_TARGETS[name].keys.stem(path) == key
