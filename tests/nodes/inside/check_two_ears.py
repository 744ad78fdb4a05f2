"""Bridges beside the vision model's own encoder: what the node gives is what the standalone sampler hears and draws,
and, of ComfyUI's own CLIPs, what transformers computes with the same weights."""

# pyright: reportMissingImports=false

from __future__ import annotations

import importlib
from dataclasses import replace
from functools import cache
from typing import Any

import comfy.sd
import comfy.text_encoders.sa_t5
import torch
import transformers as hf
from check_connectors import drawn
from check_save import written
from comfy import sd1_clip, sdxl_clip
from comfy.supported_models_base import ClipTarget
from host_networks import (
    CASES,
    SIZES,
    WIDTH,
    TinyTokenizer,
    adapters,
    checkpoint_,
    config_,
    file_of,
    loaded,
    twin,
    usual,
)
from host_networks import bridge as made
from host_side import (
    EXPECTED,
    MODELS,
    PROMPTS,
    check,
    close,
    connected,
    language_model,
    refused,
    vision_,
    vision_model_,
)

import nodes as stock

prompt_ = importlib.import_module("hyphen-pack.lavi_core.prompt")
syntax_ = importlib.import_module("hyphen-pack.nodes.prompt_syntax")
tokens_ = importlib.import_module("hyphen-pack.nodes.context_tokens")
two_ears_ = importlib.import_module("hyphen-pack.nodes.two_ears")

NAMES = ("ears", "ears-masked", "ears-timed", "ears-timed-after")
PLAIN = syntax_.PromptOptions()
WEIGHTS = syntax_.PromptOptions(weights=True)
OWN_TEXT = "two elephants in the forest"


@cache
def own_clip():
    return connected("ears-own", language_model("own"), 0.0).clip


def encoded(bridge, clip, text, own_text="", options=PLAIN, strength=1.0, own_strength=1.0):
    return two_ears_.encode(bridge, clip, text, own_text, options, strength, own_strength)[0]


@check
def two_ears_say_what_the_standalone_sampler_hears():
    for name in NAMES:
        bridge = connected(name, language_model("bert"), 0.0)
        for i in (0, 1):
            close(encoded(bridge, own_clip(), PROMPTS[i])[0][0], f"{name}.{i}")
        close(encoded(bridge, own_clip(), PROMPTS[0], OWN_TEXT, PLAIN, 0.6, 1.4)[0][0], f"{name}.loud")


@check
def two_ears_draw_what_the_standalone_sampler_does():
    model = vision_model_.load(MODELS / "diffusers" / "tiny-flow")
    for name in NAMES:
        bridge, expected = connected(name, language_model("bert"), 0.0), EXPECTED[f"sampled.{name}"]
        sides = [encoded(bridge, own_clip(), text) for text in PROMPTS[:2]]
        found = drawn(vision_.apply(model, bridge, 1.0), bridge, expected.shape, sides=sides)
        gap = (found - expected).abs().max()
        assert gap < 1e-3 * expected.abs().max(), (name, gap)


def hosts(kind):
    """A CLIP of the host's own classes over the twin's weights, the bridge's ``own_encoder`` for it, and what
    transformers says of a text: context and pooled vector."""
    folder, language = twin("t5" if kind == "t5" else "clip"), usual("t5" if kind == "t5" else "clip").encoder
    reads = prompt_.PromptRecipe(max_length=77, language_mask=False)
    if kind == "t5":
        reads = prompt_.PromptRecipe(max_length=60, vision_mask=True)

        class Unpadded(TinyTokenizer):
            def __init__(self, **where):
                super().__init__(**where)
                self.pad_to_max_length, self.min_length = False, 1

        target = ClipTarget(
            lambda **where: sd1_clip.SD1Tokenizer(**where, name="t5base", tokenizer=Unpadded), CASES["t5"].target.clip
        )
        clip = loaded(target, file_of("t5"), {"t5base_model_config": CASES["t5"].sizes, "dtype": torch.float32})
        clip.cond_stage_model.t5base.special_tokens = {"end": 2, "pad": 0}  # of the tiny vocabulary
    elif kind == "clip":
        clip = loaded(CASES["clip"].target, file_of("clip"), {"clip_l_model_config": SIZES, "dtype": torch.float32})
    else:
        sizes = {f"{name}_model_config": SIZES | {"hidden_act": "quick_gelu"} for name in ("clip_l", "clip_g")}
        target = ClipTarget(sdxl_clip.SDXLTokenizer, sdxl_clip.SDXLClipModel)
        clip = loaded(target, file_of("clip"), sizes | {"dtype": torch.float32})
        clip.cond_stage_model.clip_g.load_sd(file_of("clip"))
        reads = replace(reads, hidden_states=-2)
    count = 2 if kind == "xl" else 1
    own = config_.OwnEncoderConfig(
        encoders=(language.config,) * count, prompt=reads, pooled_width=WIDTH if kind == "xl" else None
    )
    model = (
        (hf.T5EncoderModel if kind == "t5" else hf.CLIPTextModel).from_pretrained(folder, dtype=torch.float32).eval()
    )

    def says(text):
        tokenizer = language.tokenizer
        if kind == "t5":
            ids = language.tokenize([text], prompt_.PromptRecipe(padding="longest", max_length=60)).ids
            return model(ids).last_hidden_state, None
        ids = tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        if kind == "clip":
            return model(ids).last_hidden_state, None
        end = int((ids[0] == tokenizer.eos_token_id).nonzero()[0])
        others = ids.clone()
        others[:, end + 1 :] = 0  # the second CLIP's padding
        both = [model(one, output_hidden_states=True) for one in (ids, others)]
        context = torch.cat([one.hidden_states[-2] for one in both], dim=-1)
        return context, both[1].last_hidden_state[:, end]

    return clip, own, says


def beside(own, place="before"):
    """A bridge from the tiny T5 or CLIP twin beside ``own``, and the same one alone."""
    kind = "t5" if own.encoders[0].family == "clip" else "clip"
    checkpoint = checkpoint_.BridgeCheckpoint.load(MODELS / "lavi_bridges" / made(kind))
    config, width = checkpoint.config, own.width
    adapter = replace(config.adapter, out_width=width)
    torch.manual_seed(6)
    config = replace(config, adapter=adapter, vision=replace(config.vision, context_width=width))
    found = []
    for name, ear in (("alone", None), ("beside", replace(own, place=place))):
        torch.manual_seed(6)
        file = MODELS / "lavi_bridges" / f"ear-{name}-{width}-{kind}-{place}.safetensors"
        weights = adapters.build(adapter).state_dict()
        checkpoint_.BridgeCheckpoint(replace(config, own_encoder=ear), weights, checkpoint.language_lora, {}).save(file)
        found.append(connected(file.stem, usual(kind), 0.0))
    return found


@check
def comfyuis_own_clips_are_heard_beside_a_bridge():
    """CLIP, two CLIPs with a pooled vector, T5 without padding: before or after the bridge's tokens."""
    for kind in ("clip", "xl", "t5"):
        clip, own, says = hosts(kind)
        for place in ("before", "after"):
            alone, both = beside(own, place)
            for text in PROMPTS[:2]:
                context, pooled = says(text)
                ours = alone.encode(text)[0][0][0]
                ((found, more),) = encoded(both, clip, text)
                expected = torch.cat([context, ours] if place == "before" else [ours, context], dim=1)
                assert found.shape == expected.shape, (kind, found.shape, expected.shape)
                gap = float((found - expected).abs().max())
                assert gap < 1e-5, (kind, place, text, gap)
                if pooled is not None:
                    assert (more["pooled_output"] - pooled).abs().max() < 1e-5
                kinds = [token.kind for token in more[tokens_.CONTEXT_TOKENS].tokens]
                assert kinds.count("clip") == context.shape[1] and len(kinds) == found.shape[1]
                assert (kinds[0] == "clip") == (place == "before")


@check
def tags_and_prose_weights_and_strengths_of_each_ear():
    clip, own, _ = hosts("clip")
    alone, both = beside(own)
    tags, prose = "1girl, (solo:1.3), \\(series\\)", "a cat (asleep) on a sofa"
    ((stocks, _),) = stock.CLIPTextEncode().encode(clip, tags)[0]
    ((found, more),) = encoded(both, clip, prose, tags)
    assert torch.equal(found[:, :77], stocks) and torch.equal(found[:, 77:], alone.encode(prose)[0][0][0])
    weighted = {token.text: token.weight for token in more[tokens_.CONTEXT_TOKENS].tokens if token.kind == "clip"}
    assert weighted["solo</w>"] == 1.3 and "(" not in "".join(weighted).replace("(</w>", "").replace("(series", "")
    # the same text: one switch for both
    plain = encoded(both, clip, prose)[0][0]
    ((escaped, _),) = stock.CLIPTextEncode().encode(clip, "a cat \\(asleep\\) on a sofa")[0]
    assert torch.equal(plain[:, :77], escaped)
    ((read, _),) = stock.CLIPTextEncode().encode(clip, prose)[0]
    on = encoded(both, clip, prose, "", WEIGHTS)[0][0]
    assert torch.equal(on[:, :77], read) and torch.equal(on[:, 77:], alone.encode(prose, WEIGHTS)[0][0][0])
    # 0 = the empty prompt, between the two a line
    empty = encoded(both, clip, "")[0][0]
    for strength in (0.0, 0.5):
        for ear, part, rest in (
            ("own_strength", slice(0, 77), slice(77, None)),
            ("strength", slice(77, None), slice(0, 77)),
        ):
            strengths: dict[str, Any] = {ear: strength}
            one = encoded(both, clip, prose, **strengths)[0][0]
            assert torch.equal(one[:, rest], plain[:, rest])
            line = empty[:, part] + strength * (plain - empty)[:, part]
            assert (one[:, part] - line).abs().max() < 1e-5
    # more than 77 tokens: pieces, as the host makes them, at any strength
    long = "red hair, " * 40
    ((pieces, _),) = stock.CLIPTextEncode().encode(clip, long)[0]
    assert pieces.shape[1] > 77
    half = encoded(both, clip, "", long, own_strength=0.5)[0][0][:, : pieces.shape[1]]
    blank = empty[:, :77].repeat(1, pieces.shape[1] // 77, 1)
    assert (half - (blank + 0.5 * (pieces - blank))).abs().max() < 1e-5


@check
def a_lora_on_the_clip_is_heard_by_that_ear_alone_and_prompts_are_remembered():
    clip, own, _ = hosts("clip")
    _, both = beside(own)
    plain = encoded(both, clip, PROMPTS[0])[0][0]
    key = "text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj"
    lora = {f"{key}.lora_up.weight": torch.randn(WIDTH, 1) * 9, f"{key}.lora_down.weight": torch.randn(1, WIDTH)}
    _, changed = comfy.sd.load_lora_for_models(None, clip, lora, 1.0, 1.0)
    found = encoded(both, changed, PROMPTS[0])[0][0]
    assert (found - plain)[:, :77].abs().max() > 1e-3 and torch.equal(found[:, 77:], plain[:, 77:])
    calls = []
    hook = both.encoder.model.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        again = encoded(both, clip, PROMPTS[0])[0][0]
    finally:
        hook.remove()
    assert torch.equal(again, plain) and not calls


@check
def two_ears_that_do_not_fit_are_refused():
    clip, own, _ = hosts("clip")
    alone, both = beside(own)
    words = ["trained beside the vision model's own text encoder", "take Bridge and CLIP Text Encode"]
    refused(words, both.encode, PROMPTS[0])
    refused(words, stock.CLIPTextEncode().encode, both.clip, "a red circle")
    refused(["trained to be heard alone", "Conditioning (Concat)"], encoded, alone, clip, "a red circle")
    for other in (hosts("xl")[0], hosts("t5")[0]):
        refused(["(clip of width 64), this CLIP holds", "give the CLIP of the checkpoint"], encoded, both, other, "a")
    refused(["this CLIP is a bridge (identity)", "at 12"], encoded, both, own_clip(), "a")
    other_clip, other, _ = hosts("t5")
    filled = loaded(
        CASES["t5"].target, file_of("t5"), {"t5base_model_config": CASES["t5"].sizes, "dtype": torch.float32}
    )
    refused(["fills a prompt for its T5 up with padding", "type pixart"], encoded, beside(other)[1], filled, "a")
    padding = other_clip.clone()
    padding.set_tokenizer_option("t5xxl_min_length", 0)
    unpadded = beside(other)[1]
    encoded(unpadded, padding, "a")
    padding.set_tokenizer_option("t5xxl_min_length", 60)
    refused(["with padding", "take T5 Tokenizer Options out"], encoded, unpadded, padding, "a")
    timed = connected("ears-timed", language_model("bert"), 0.0)
    refused(["this CLIP is a bridge (mlp)"], encoded, timed, connected("flow", language_model("bert")).clip, "a")


@check
def a_bridge_with_two_ears_is_saved_as_one():
    bridge = connected("ears-timed", language_model("bert"), 0.0)
    file = written(bridge, None, "saved-ears")
    try:
        again = connected("saved-ears", language_model("bert"), 0.0)
        assert again.config.own_encoder == bridge.config.own_encoder
        first, second = (encoded(one, own_clip(), PROMPTS[0])[0][0] for one in (bridge, again))
        torch.testing.assert_close(first, second)
    finally:
        file.unlink()
