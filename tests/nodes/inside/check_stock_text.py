"""The host's own text nodes on a bridge's CLIP: they work, or say one sentence."""

# pyright: reportMissingImports=false

from __future__ import annotations

import importlib
from dataclasses import replace

import torch
from comfy_extras import nodes_clip_sdxl, nodes_flux, nodes_hunyuan, nodes_sd3
from host_side import MODELS, PROMPTS, Lines, check, connected, context, language_model, refused, vision_, vision_model_

import nodes as stock

core = importlib.import_module("hyphen-pack.lavi_core.checkpoint")
clip_ = importlib.import_module("hyphen-pack.nodes.clip")
prompting_ = importlib.import_module("hyphen-pack.nodes.prompt_syntax")
SIZES = {"width": 1024, "height": 768, "crop_w": 8, "crop_h": 0, "target_width": 1024, "target_height": 512}


def first(output):
    return (output.args if hasattr(output, "args") else output)[0][0]


def encoded(node, *args, **kwargs):
    run = getattr(node, "execute", None) or getattr(node(), "encode", None) or getattr(node(), node.FUNCTION)
    return first(run(*args, **kwargs))


@check
def nodes_for_several_encoders_say_what_clip_text_encode_says():
    bridge = connected("bert")
    text, clip = PROMPTS[0], bridge.clip
    plain = context(bridge)
    sdxl = nodes_clip_sdxl.CLIPTextEncodeSDXL
    heard, more = encoded(sdxl, clip=clip, text_g=text, text_l=text, **SIZES)
    assert torch.equal(heard, plain) and all(more[name] == size for name, size in SIZES.items())
    for other in ("", text):
        assert torch.equal(encoded(sdxl, clip=clip, text_g=other, text_l=text, **SIZES)[0], plain)
        assert torch.equal(encoded(nodes_flux.CLIPTextEncodeFlux, clip, other, text, 3.5)[0], plain)
        assert torch.equal(encoded(nodes_hunyuan.CLIPTextEncodeHunyuanDiT, clip, other, text)[0], plain)
        for padding in ("none", "empty_prompt"):
            assert torch.equal(encoded(nodes_sd3.CLIPTextEncodeSD3, clip, other, other, text, padding)[0], plain)
    assert encoded(nodes_flux.CLIPTextEncodeFlux, clip, text, text, 3.5)[1]["guidance"] == 3.5
    empty = stock.CLIPTextEncode().encode(clip, "")[0][0][0]
    assert torch.equal(encoded(nodes_sd3.CLIPTextEncodeSD3, clip, "", "", "", "none")[0], empty)


@check
def two_texts_are_refused_in_a_sentence():
    clip = connected("bert").clip
    for node, args in (
        (nodes_flux.CLIPTextEncodeFlux, (clip, "a red circle", "sea", 3.5)),
        (nodes_hunyuan.CLIPTextEncodeHunyuanDiT, (clip, "a red circle", "sea")),
        (nodes_sd3.CLIPTextEncodeSD3, (clip, "a red circle", "sea", "sea", "none")),
    ):
        refused(
            ("hears one text, this node gives 2", "'a red circle'", "'sea'", "Bridge Text Encode"), encoded, node, *args
        )
    refused(("hears text alone, this node gives it images too",), lambda: clip.tokenize("sea", images=[torch.zeros(1)]))
    clip.tokenize("sea", images=[], image=None, min_length=1)
    if hasattr(clip, "generate"):
        refused(("has no head to write text with",), lambda: clip.generate(clip.tokenize("sea")))


@check
def the_last_layer_is_counted_from_the_trained_one():
    for trained, layer, counted in (
        ("last", -2, -2),
        (2, -2, 1),
        (2, -3, 0),
        (-2, -2, -3),
        ("last_before_norm", -2, -2),
    ):
        assert clip_.counted_from(trained, layer, 6) == counted
    refused(("hidden state 2, there is none at -1", "can go back to -3"), clip_.counted_from, 2, -4, 6)
    assert clip_.counted_from("last", -7, 6) == -7
    refused(("has 6 layers", "can go back to -7"), clip_.counted_from, "last", -8, 6)
    refused(("hears several layers",), clip_.counted_from, "normalized_mean", -2, 6)
    bridge = connected("gpt2")
    trained = bridge.config.prompt.hidden_states
    back = stock.CLIPSetLastLayer().set_last_layer(bridge.clip, -2)[0]
    with Lines() as lines:
        heard = stock.CLIPTextEncode().encode(back, PROMPTS[0])[0][0][0]
    assert len(lines) == 1 and "CLIP Set Last Layer -2 has the bridge hear another layer" in lines[0], lines
    shell = back.cond_stage_model
    recipe = replace(
        bridge.config.prompt, hidden_states=clip_.counted_from(trained, -2, bridge.config.language.num_layers)
    )
    with torch.inference_mode():
        states = shell.encoder(shell.encoder.tokenize([PROMPTS[0]], recipe), recipe)
        expected = shell._adapter.model(states).context
    assert torch.allclose(heard, expected[:, states.mask[0]] if recipe.vision_mask else expected, atol=1e-5)
    same = stock.CLIPSetLastLayer().set_last_layer(bridge.clip, -1)[0]
    assert torch.equal(stock.CLIPTextEncode().encode(same, PROMPTS[0])[0][0][0], context(bridge))


@check
def what_is_cut_is_said_once_a_prompt():
    bridge = connected("bert")
    long = "a red circle left of a blue square and two elephants in the forest with a candy"
    with Lines() as lines:
        stock.CLIPTextEncode().encode(bridge.clip, long)
        assert len(lines) == 1 and "are cut off and not heard" in lines[0] and "candy" in lines[0], lines
        bridge.encode(long)
        bridge.encode(long)
        assert len(lines) == 2 and "long_prompts can chunk it" in lines[1], lines
        bridge.encode("a red circle")
        assert len(lines) == 2


@check
def pieces_are_tokenised_once_and_heard_together():
    bridge = connected("bert")
    words = " ".join(f"a red circle left of {i} blue squares" for i in range(60))
    counted = []
    tokenize = bridge.encoder.tokenize
    bridge.encoder.tokenize = lambda prompts, recipe: counted.append(len(prompts)) or tokenize(prompts, recipe)
    passes = []
    bridge.patcher.model.model.register_forward_hook(lambda *_: passes.append(1))
    conditioning, report = bridge.encode(words, prompting_.PromptOptions(long_prompts="chunk"))
    pieces = int(report.split()[0])
    assert pieces > 20 and len(passes) == -(-pieces // clip_.BATCH), (pieces, len(passes), report)
    assert sum(counted) < 4 * pieces, (counted, pieces)
    texts = [token.text for token in conditioning[0][1]["lavi_bridge"].tokens]
    assert "".join(texts).replace(" ", "").count("squares") == 60
    one_by_one = [bridge.encode(piece)[0][0][0] for piece in conditioning[0][1]["lavi_bridge"].texts]
    assert torch.allclose(conditioning[0][0], torch.cat(one_by_one, dim=1), atol=1e-5)


@check
def a_strength_that_does_nothing_is_said():
    path = MODELS / "lavi_bridges" / "frozen.safetensors"
    checkpoint = core.BridgeCheckpoint.load(MODELS / "lavi_bridges" / "bert.safetensors")
    config = replace(checkpoint.config, language_lora=None, vision_lora=None)
    core.BridgeCheckpoint(config, checkpoint.adapter, {}, {}).save(path)
    try:
        with Lines() as lines:
            connected("frozen", language_model("bert"), strength=1.0)
            connected("bert", strength=0.5)
            assert not lines, lines
            bridge = connected("frozen", language_model("bert"), strength=10.0)
            assert len(lines) == 1 and "language_lora = 10 does nothing: frozen.safetensors" in lines[0], lines
            model = vision_model_.load(MODELS / "diffusers" / "tiny-flow")
            bridged = vision_.apply(model, bridge, 1.0)
            assert len(lines) == 2 and "Apply Bridge changes no weight: frozen.safetensors" in lines[1], lines
            assert not bridged.patches
    finally:
        path.unlink()


@check
def a_wire_is_shown_as_a_line():
    from comfy_extras.nodes_preview_any import PreviewAny

    bridge = connected("bert")
    for wire, words in ((bridge, "bridge bert.safetensors from"), (bridge.clip.cond_stage_model.language, "layers of")):
        (shown,) = PreviewAny().main(wire)["ui"]["text"]
        assert words in shown and len(shown) < 200 and "\n" not in shown, shown


@check
def break_is_no_word_where_there_are_no_pieces():
    bridge = connected("bert")
    plain = stock.CLIPTextEncode().encode(bridge.clip, "a red circle")[0][0][0]
    assert torch.equal(stock.CLIPTextEncode().encode(bridge.clip, "a red BREAK circle")[0][0][0], plain)
    for way in ("cut", "full length"):
        options = prompting_.PromptOptions(weights=True, long_prompts=way)
        for text in ("a (red:1.3) BREAK circle", "a (red:1.3)  BREAK\n circle"):
            ours = bridge.encode(text, options)[0][0][0]
            assert torch.equal(ours, bridge.encode("a (red:1.3) circle", options)[0][0][0])


@check
def a_bridges_lora_that_a_stock_loader_has_added_is_told():
    bridge = connected("sd1", language_model("bert"))
    model = vision_model_.load(MODELS / "diffusers" / "tiny-sd1")
    with Lines() as lines:
        vision_.apply(model, bridge, 1.0)
        assert not lines, lines
        loaded = stock.LoraLoaderModelOnly().load_lora_model_only(model, "exported-sd1.safetensors", 0.5)[0]
        vision_.apply(loaded, bridge, 1.0)
        assert len(lines) == 1 and "the LoRA of sd1.safetensors is in this model already" in lines[0], lines
