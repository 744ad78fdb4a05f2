"""Parity with the authors' released code, whose results for two tiny bridges lie in ``tests/golden``.

Their LoRA files are nameless lists [up, down, up, down, ...] in the order in which diffusers 0.24 walks its modules;
that order is replayed here, in the test alone.
"""

from __future__ import annotations

import json
import re

import diffusers
import pytest
import torch
from lavi_bridge.lavi_core import lora
from lavi_bridge.lavi_core.bridge import Bridge
from lavi_bridge.lavi_core.checkpoint import BridgeCheckpoint
from lavi_bridge.lavi_core.config import AdapterConfig, BridgeConfig, LoRAConfig, VisionConfig
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.lavi_core.lora import Delta
from lavi_bridge.lavi_core.prompt import PromptRecipe
from lavi_bridge.lavi_core.vision import VISION_TARGETS
from safetensors.torch import load_file

CASES = {"t5_unet": ("unet", "UNet2DConditionModel"), "t5_transformer": ("pixart", "PixArtTransformer2DModel")}


@pytest.fixture(params=CASES)
def case(request, golden):
    return golden / request.param


def nameless(file, paths):
    """The authors' list, given the paths in their order."""
    tensors = [t.float() for t in torch.load(file, weights_only=True)]
    assert len(tensors) == 2 * len(paths)
    return {path: Delta(tensors[2 * i + 1], tensors[2 * i], 1.0) for i, path in enumerate(paths)}


def diffusers_0_24_order(path):
    """down, up, mid; in a block attentions, then resnets; in a resnet conv1, time_emb_proj, conv2, conv_shortcut."""
    part, *_ = path.split(".")
    block = ["down_blocks", "up_blocks", "mid_block", "transformer_blocks"].index(part)
    numbers = [int(n) for n in re.findall(r"\.(\d+)", path)]
    outer = numbers[:1] if part != "mid_block" else []
    inner = numbers[len(outer) :][:1] if part != "transformer_blocks" else []
    names = ("attn1", "attn2", "ff", "conv1", "time_emb_proj", "conv2", "conv_shortcut")
    place = next(i for i, name in enumerate(names) if f".{name}" in path)
    projection = next((i for i, name in enumerate(("to_q", "to_k", "to_v", "to_out")) if name in path), 0)
    return (block, outer, "resnets" in path, inner, place, projection)


def checkpoint(case, encoder, vision):
    """The released files as one of our checkpoints."""
    facts = json.loads((case / "case.json").read_text())
    target = VISION_TARGETS[CASES[case.name][0]]
    widths = dict(zip(("in_width", "inner_width", "out_width"), facts["adapter"], strict=True))
    given = facts["attention_mask_given_to"]
    config = BridgeConfig(
        language=encoder.config,
        prompt=PromptRecipe(
            max_length=facts["max_length"], language_mask="text_encoder" in given, vision_mask="vision" in given
        ),
        adapter=AdapterConfig(kind="mlp", **widths),
        vision=VisionConfig(
            model_id="tiny",
            target=target.name,
            context_width=widths["out_width"],
            objective="epsilon",
            latent_channels=4,
            latent_scale=0.18215,
            fingerprint="",
        ),
        language_lora=LoRAConfig(rank=4, alpha=4),
        vision_lora=LoRAConfig(rank=4, alpha=4),
    )
    return BridgeCheckpoint(
        config,
        load_file(case / "released/adapter/diffusion_pytorch_model.safetensors"),
        nameless(case / "released/lora_text.pt", encoder.lora_sites()),
        nameless(case / "released/lora_vis.pt", sorted(target.sites(vision), key=diffusers_0_24_order)),
    )


def close(ours, expected):
    """Within 1e-4 of the expected tensor's size."""
    assert ours.shape == expected.shape
    assert ((ours - expected).norm() / expected.norm()).item() < 1e-4


@pytest.mark.parametrize("how", ["merged", "live"])
def test_the_released_code_says_the_same(case, how, tmp_path):
    expected = load_file(case / "expected.safetensors")
    prompts = json.loads((case / "case.json").read_text())["prompts"]
    encoder = TextEncoder.load(case / "text_encoder")
    vision = getattr(diffusers, CASES[case.name][1]).from_pretrained(case / "vision").eval()
    checkpoint(case, encoder, vision).save(tmp_path / "bridge.safetensors")
    loaded = BridgeCheckpoint.load(tmp_path / "bridge.safetensors")
    bridge = Bridge.connect(loaded, encoder, lora=how)
    recipe = bridge.config.prompt

    tokens = encoder.tokenize(prompts, recipe)
    assert torch.equal(tokens.ids, expected["input_ids"])
    assert torch.equal(tokens.mask, expected["attention_mask"].bool())
    with torch.no_grad():
        close(encoder(tokens, recipe).states, expected["hidden_states"])
        heard = bridge(prompts)
    close(heard.context, expected["context"])
    assert (heard.mask is None) == (case.name == "t5_unet")

    put = {"merged": lora.merge, "live": lora.attach}[how]
    plain = noise(vision, expected, heard)
    applied = put(vision, loaded.vision_lora)
    close(noise(vision, expected, heard), expected["noise_pred"])
    applied.remove()
    assert torch.equal(noise(vision, expected, heard), plain)
    assert (plain - expected["noise_pred"]).norm() / plain.norm() > 1e-2


@torch.no_grad()
def noise(vision, expected, heard):
    more = {}
    if heard.mask is not None:
        more = {
            "encoder_attention_mask": heard.mask.long(),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        }
    return vision(
        expected["latents"], timestep=expected["timesteps"], encoder_hidden_states=heard.context, **more
    ).sample


def test_a_list_in_another_order_would_be_seen(case):
    """The up-matrices are all non-zero: two sites exchanged give another result."""
    expected = load_file(case / "expected.safetensors")
    prompts = json.loads((case / "case.json").read_text())["prompts"]
    encoder = TextEncoder.load(case / "text_encoder")
    sites = encoder.lora_sites()
    sites[0], sites[1] = sites[1], sites[0]
    lora.attach(encoder.model, nameless(case / "released/lora_text.pt", sites))
    recipe = PromptRecipe(max_length=expected["input_ids"].shape[1], language_mask=case.name == "t5_transformer")
    states = encoder(encoder.tokenize(prompts, recipe), recipe).states
    assert (states - expected["hidden_states"]).norm() / expected["hidden_states"].norm() > 1e-3
