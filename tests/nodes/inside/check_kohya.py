"""LoRA files with kohya's names in the host's own LoRA loader, on the CLIP of Load Bridge."""

# pyright: reportMissingImports=false

from __future__ import annotations

import importlib
import inspect

import comfy.lora
import comfy.sd
import torch
from comfy_extras import nodes_model_merging
from host_side import MODELS, PROMPTS, Lines, check, connected, language_model

import nodes as stock

core = importlib.import_module("hyphen-pack.lavi_core.checkpoint")
# Since 0.33 the host has names of kohya for an encoder that is the only one of its CLIP.
KNOWS_LONE_ENCODERS = "prefix_set" in inspect.getsource(comfy.lora.model_lora_keys_clip)


@check
def kohyas_names_land_through_the_stock_lora_loader():
    """On Load Bridge's CLIP, and on it alone; what is for no site the host names."""
    for kind, prefix in (("llama", "lora_te_"), ("t5", "lora_te1_")):
        if prefix == "lora_te_" and not KNOWS_LONE_ENCODERS:
            continue
        deltas = bridge_lora(kind)
        state = {}
        for path, delta in deltas.items():
            name = f"{prefix}{path.replace('.', '_')}"
            state |= {f"{name}.lora_down.weight": delta.down, f"{name}.lora_up.weight": delta.up}
            state[f"{name}.alpha"] = torch.tensor(delta.scale * delta.down.shape[0])
        bridge = connected(kind, strength=0.0)
        before = encoded(bridge.clip)
        with Lines("") as lines:
            _, clip = comfy.sd.load_lora_for_models(None, bridge.clip, state, 1.0, 0.7)
            assert not [line for line in lines if "lora" in line], lines
            torch.testing.assert_close(encoded(clip), encoded(connected(kind, strength=0.7).clip), rtol=1e-4, atol=1e-5)
            _, again = comfy.sd.load_lora_for_models(None, clip.clone(), state, 1.0, -0.7)
            torch.testing.assert_close(encoded(again), before, rtol=1e-4, atol=1e-5)
            comfy.sd.load_lora_for_models(
                None, bridge.clip, {f"{prefix}nowhere.lora_up.weight": torch.ones(2, 1)}, 1, 1
            )
            assert any("nowhere" in line for line in lines)
        assert torch.equal(encoded(bridge.clip), before)


@check
def merging_two_bridges_clips_says_what_is_merged():
    first, second = connected("flow", language_model("bert")), connected("bert")
    (merged,) = nodes_model_merging.CLIPMergeSimple().merge(first.clip, first.clip, 0.5)
    torch.testing.assert_close(encoded(merged), encoded(first.clip), rtol=1e-4, atol=1e-5)
    with Lines() as lines:
        nodes_model_merging.CLIPMergeSimple().merge(first.clip, second.clip, 0.0)
    assert len(lines) == 1 and "not their adapters" in lines[0], lines
    with Lines() as lines:
        comfy.sd.load_lora_for_models(None, first.clip, {}, 1.0, 1.0)
    assert not lines, lines


def bridge_lora(kind):
    return core.BridgeCheckpoint.load(MODELS / "lavi_bridges" / f"{kind}.safetensors").language_lora


def encoded(clip):
    return stock.CLIPTextEncode().encode(clip, PROMPTS[0])[0][0][0]
