"""The host's own text encoders as language models of bridges: what transformers computes with the same weights."""

# pyright: reportMissingImports=false

from __future__ import annotations

from dataclasses import replace

import comfy.model_management
import comfy.sd
import torch
from comfy import sdxl_clip
from comfy.supported_models_base import ClipTarget
from host_networks import (
    CASES,
    SIZES,
    WIDTH,
    apart,
    bridge,
    connected,
    contexts,
    file_of,
    host,
    host_clip,
    loaded,
    of,
    usual,
)
from host_side import PROMPTS, check, node_classes, partly, refused, same_bits, weights

import nodes as stock


@check
def the_hosts_text_encoder_says_what_transformers_says():
    for kind in CASES:
        name, ours, theirs = bridge(kind), host(kind), usual(kind)
        plain = contexts(connected(name, theirs, 0.0))
        patched = contexts(connected(name, theirs))
        assert apart(contexts(connected(name, ours, 0.0)), plain) < 1e-4, kind
        assert apart(contexts(connected(name, ours)), patched) < 1e-4, kind
        assert apart(plain, patched) > 1e-2, kind
        half = of(host_clip(kind, dtype=torch.float16))
        assert apart(contexts(connected(name, half, 0.0)), plain) < 1e-4, kind
        assert apart(contexts(connected(name, half)), patched) < 1e-2, kind
        assert ours.encoder.config.fingerprint == theirs.encoder.config.fingerprint, kind
        assert sorted(ours.encoder.lora_sites()) == sorted(theirs.encoder.lora_sites()), kind


@check
def every_recipe_of_a_bridge_is_the_hosts_too():
    for kind in CASES:
        ours, theirs = host(kind), usual(kind)
        for recipe in (
            {"hidden_states": 0},
            {"hidden_states": -2},
            {"hidden_states": "normalized_mean"},
            {"language_mask": False},
            {"vision_mask": True},
            {"padding": "longest"},
            {"language_mask": False, "padding_side": "left"},
        ):
            name = bridge(kind, **recipe)
            heard = contexts(connected(name, theirs, 0.0))
            assert apart(contexts(connected(name, ours, 0.0)), heard) < 1e-4, (kind, recipe)
    left = {"padding_side": "left", "vision_mask": True}
    assert apart(*(contexts(connected(bridge("t5", **left), m, 0.0)) for m in (host("t5"), usual("t5")))) < 1e-4
    refused(["qwen25_3b", "left"], contexts, connected(bridge("qwen", **left), host("qwen"), 0.0))


@check
def a_prompt_without_tokens_is_transformers_or_refused():
    bare = {"template": "{prompt}", "add_special_tokens": False, "no_token": "masked"}
    for kind in CASES:
        ours, theirs = (connected(bridge(kind, **bare), model, 0.0) for model in (host(kind), usual(kind)))
        for prompt in PROMPTS:
            if kind != "t5" and not prompt:
                refused(["without tokens", "Llama2_" if kind == "qwen" else "CLIPTextModel_"], ours.encode, prompt)
            else:
                assert apart(*([side.encode(prompt)[0][0][0]] for side in (ours, theirs))) < 1e-4, (kind, prompt)


@check
def nothing_is_loaded_twice_and_all_is_given_back():
    for kind in CASES:
        comfy.model_management.unload_all_models()
        clip = host_clip(kind)
        (stocks,) = stock.CLIPTextEncode().encode(clip, PROMPTS[0])
        before = weights(clip.cond_stage_model)
        ours = of(clip)
        assert ours.patcher.model is clip.patcher.model
        held = {parameter.data_ptr() for parameter in clip.cond_stage_model.parameters()}
        assert {parameter.data_ptr() for parameter in ours.encoder.parameters()} <= held
        patched = connected(bridge(kind), ours)
        assert patched.clip.patcher.model is clip.patcher.model
        contexts(patched)
        assert not same_bits(before, weights(clip.cond_stage_model)), kind
        comfys = [p for p in comfy.model_management.loaded_models() if p.model is clip.patcher.model]
        assert len(comfys) == 1, comfys
        (again,) = stock.CLIPTextEncode().encode(clip, PROMPTS[0])
        assert torch.equal(stocks[0][0], again[0][0]) and same_bits(before, weights(clip.cond_stage_model)), kind
        contexts(patched)
        comfy.model_management.unload_all_models()
        assert same_bits(before, weights(clip.cond_stage_model)), kind
        assert patched.clip.cond_stage_model.state_dict().keys() == clip.get_sd().keys()


@check
def the_lora_survives_a_partial_load_of_the_hosts_encoder():
    for kind in CASES:
        name, ours = bridge(kind), connected(bridge(kind), host(kind))
        partly(ours.clip.patcher)
        pieces = ours.clip.tokenize(PROMPTS[0])
        heard = ours.clip.cond_stage_model.encode_token_weights(pieces)[0]
        assert (heard - contexts(connected(name, usual(kind)))[0]).abs().max() < 1e-4, kind


@check
def a_print_is_of_the_weights_without_the_loras_that_lie_in_them():
    clip = host_clip("clip")
    plain = of(clip).encoder.config.fingerprint
    key = "text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj"
    lora = {f"{key}.lora_up.weight": torch.randn(WIDTH, 1) * 9, f"{key}.lora_down.weight": torch.randn(1, WIDTH)}
    _, changed = comfy.sd.load_lora_for_models(None, clip, lora, 1.0, 1.0)
    stock.CLIPTextEncode().encode(changed, PROMPTS[0])
    ours = of(changed)
    assert ours.encoder.config.fingerprint == plain
    name = bridge("clip")
    assert apart(contexts(connected(name, ours, 0.0)), contexts(connected(name, of(clip), 0.0))) > 1e-2


@check
def a_clip_of_several_encoders_is_asked_which():
    sizes = {f"{name}_model_config": SIZES for name in ("clip_l", "clip_g")}
    target = ClipTarget(sdxl_clip.SDXLTokenizer, sdxl_clip.SDXLClipModel)
    clip = loaded(target, file_of("clip"), sizes | {"dtype": torch.float32})
    refused(["2 text encoders", "clip_g and clip_l", "choose"], of, clip)
    refused(["clip_g and clip_l", "not t5xxl"], of, clip, "t5xxl")
    name = bridge("clip")
    heard = contexts(connected(name, of(clip, "clip_l")))
    assert apart(heard, contexts(connected(name, usual("clip")))) < 1e-4
    other = of(clip, "clip_g")
    assert other.encoder.tokenizer.pad_token_id == 0 and clip.tokenizer.clip_g.tokenizer.pad_token_id == 49407
    refused(["made for twin-clip", "clip_g of ComfyUI", "fingerprint"], connected, name, other)


@check
def what_a_bridge_cannot_hear_is_refused():
    clip = host_clip("clip", {})
    clip.tokenizer.clip_l.tokenizer = object()
    refused(["clip_l", "object", "no Hugging Face tokenizer", "Load Language Model"], of, clip)
    for model in (usual("clip"), host("clip")):
        refused(["BridgeShell", "CLIP loader"], of, connected(bridge("clip"), model).clip)
    clip.cond_stage_model.clip_l.transformer = torch.nn.Linear(1, 1)
    refused(["Linear", "clip, t5, llama", "Load Language Model"], of, clip)


@check
def the_lora_node_takes_the_hosts_encoder():
    clip, name = host_clip("t5"), bridge("t5")
    patched = node_classes["LaViBridgeLanguageLoRA"].execute(of(clip), name, 0.7).args[0]
    assert apart(contexts(connected(name, patched, 0.0)), contexts(connected(name, usual("t5")))) < 1e-4
    lost = replace(of(clip), prefix="elsewhere.")
    refused(["made for a weight of"], node_classes["LaViBridgeLanguageLoRA"].execute, lost, name, 0.7)
    refused(["self_attn"], node_classes["LaViBridgeLanguageLoRA"].execute, of(clip), bridge("qwen"), 0.7)
