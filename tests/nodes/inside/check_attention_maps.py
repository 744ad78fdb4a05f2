"""What the vision model hears: its tokens, and the attention to them while it samples."""

# pyright: reportMissingImports=false

from __future__ import annotations

import importlib
import itertools

import comfy.ldm.modules.attention
import comfy.sample
import comfy.sd
import torch
from comfy_execution.graph import DynamicPrompt
from comfy_execution.progress import reset_progress_state
from comfy_execution.utils import CurrentNodeContext
from host_side import BASE, MODELS, check, connected, language_model, node_classes, refused, vision_, vision_model_

import nodes as stock

attention_maps_ = importlib.import_module("hyphen-pack.nodes.attention_recorder")
context_tokens_ = importlib.import_module("hyphen-pack.nodes.context_tokens")
heatmaps_ = importlib.import_module("hyphen-pack.nodes.attention_maps")
signature_ = importlib.import_module("hyphen-pack.nodes.cache_signature")
prompting_ = importlib.import_module("hyphen-pack.nodes.prompt_syntax")

PROMPT = "a red circle, left of a blue square"
WORDS = PROMPT.replace(",", "").split()


def model_and_bridge(name):
    bridge = connected(name, language_model("bert"))
    if name in ("sd1", "sdxl"):
        path = str(MODELS / "checkpoints" / f"tiny-{name}.safetensors")
        model = comfy.sd.load_checkpoint_guess_config(path, output_vae=False, output_clip=False)[0]
    else:
        model = vision_model_.load(MODELS / "diffusers" / f"tiny-{name}")
    return vision_.apply(model, bridge, 1.0), bridge


def encode(bridge, text, **options):
    return bridge.encode(text, prompting_.PromptOptions(**options))[0]


def latents(side, batch=1):
    return {"samples": torch.zeros(batch, 4, side, side)}


def sampled(model, positive, negative, latent, steps=1, seed=7):
    return stock.common_ksampler(model, seed, steps, 3.0, "euler", "simple", positive, negative, latent)[0]["samples"]


@check
def a_watched_model_samples_the_same_bits():
    """Of every row, with prompts of one length and of several; the attention to all vectors of a prompt sums to 1."""
    for name, side in (("flow", 16), ("sd1", 8), ("sdxl", 8), ("ldm", 9), ("small-pixart", 16)):
        model, bridge = model_and_bridge(name)
        positive, negative = encode(bridge, PROMPT), encode(bridge, "")
        plain = sampled(model, positive, negative, latents(side, 2))
        for conditioning in (positive, negative):
            watched, maps = attention_maps_.watch(model, conditioning)
            assert torch.equal(sampled(watched, positive, negative, latents(side, 2)), plain), name
            found = maps.maps()
            assert found.shape == (2, conditioning[0][0].shape[1], side, side), (name, found.shape)
            torch.testing.assert_close(found.sum(1), torch.ones(2, side, side), atol=1e-4, rtol=0)
            assert not torch.allclose(found[0], found[1])
        assert torch.equal(sampled(model, positive, negative, latents(side, 2)), plain), name


@check
def without_the_node_nothing_is_there():
    model, bridge = model_and_bridge("flow")
    positive, negative = encode(bridge, PROMPT), encode(bridge, "")
    watched, _ = attention_maps_.watch(model, positive)
    sampled(watched, positive, negative, latents(16))
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.model.modules()]
    assert not any(hooks)
    assert not any(attention_maps_.KEY in table for table in model.wrappers.values()), model.wrappers
    assert any(attention_maps_.KEY in table for table in watched.wrappers.values())
    assert "patches_replace" not in watched.model_options["transformer_options"]


@check
def the_maps_are_the_hosts_own_attention():
    """Against a replacement of every cross-attention, as another pack would write it, over two steps."""
    model, bridge = model_and_bridge("flow")
    positive, negative = encode(bridge, PROMPT), encode(bridge, "")
    watched, maps = attention_maps_.watch(model, positive)
    seen = []

    def replaced(q, k, v, options):
        heads = options["n_heads"]
        rows = torch.tensor([i for i, kind in enumerate(options["cond_or_uncond"]) if kind == 0])
        split = [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k)]
        scores = torch.einsum("bhnd,bhmd->bhnm", *split) / split[0].shape[-1] ** 0.5
        side = round(q.shape[1] ** 0.5)
        probabilities = scores.softmax(-1).mean(1)[rows].transpose(1, 2).unflatten(-1, (side, side))
        seen.append(torch.nn.functional.interpolate(probabilities, (16, 16), mode="bilinear"))
        return comfy.ldm.modules.attention.optimized_attention(q, k, v, heads)

    for block in [("input", i) for i in range(9)] + [("middle", 0)] + [("output", i) for i in range(9)]:
        watched.set_model_attn2_replace(replaced, *block)
    sampled(watched, positive, negative, latents(16), steps=2)
    layers = [name for name, _ in model.model.diffusion_model.named_modules() if name.endswith("attn2")]
    assert len(seen) == 2 * len(layers) > 4
    torch.testing.assert_close(maps.maps(), torch.stack(seen).mean(0), atol=1e-5, rtol=0)


@check
def each_sampling_begins_anew_and_combined_prompts_are_told_apart():
    model, bridge = model_and_bridge("flow")
    positive, negative, other = (encode(bridge, text) for text in (PROMPT, "", "a blue square"))
    watched, maps = attention_maps_.watch(model, positive)
    sampled(watched, positive, negative, latents(16))
    once = maps.maps()
    sampled(watched, positive, negative, latents(16), seed=8)
    assert not torch.equal(maps.maps(), once)
    sampled(watched, positive, negative, latents(16))
    assert torch.equal(maps.maps(), once)
    sampled(watched, [*other, *positive], negative, latents(16))
    torch.testing.assert_close(maps.maps(), once, atol=1e-5, rtol=0)  # the first step hears both from the same noise
    sampled(watched, other, negative, latents(16))
    refused(["watched MODEL", "sampler"], maps.maps)
    area = stock.ConditioningSetArea().append(positive, 64, 64, 0, 0, 1.0)[0]
    sampled(watched, area, negative, latents(16))
    refused(["area", "whole picture"], maps.maps)


@check
def maps_are_those_of_the_sampler_behind_the_pictures():
    """Two samplers in a row, the second within a node that expands; after more of them than are kept, none is left."""
    model, bridge = model_and_bridge("flow")
    positive, negative = encode(bridge, PROMPT), encode(bridge, "")
    watched, maps = attention_maps_.watch(model, positive)

    def run(graph, node_id, seed):
        reset_progress_state("id", graph)
        with CurrentNodeContext("id", node_id):
            sampled(watched, positive, negative, latents(16), seed=seed)
        return maps.maps()

    def drawn(graph, images):
        graph.original_prompt["maps"] = {"class_type": "Maps", "inputs": {"images": [images, 0]}}
        reset_progress_state("id", graph)
        with CurrentNodeContext("id", "maps"):
            return maps.maps(signature_.upstream_signatures("images"))

    def told(**first):
        plain = {"1": {"class_type": "Sampler", "inputs": {"seed": 1, **first}}}
        return DynamicPrompt(plain | {"2": {"class_type": "Expands", "inputs": {"latent": ["1", 0]}}})

    graph = told()
    graph.add_ephemeral_node("2.0", {"class_type": "Sampler", "inputs": {"seed": 2, "latent": ["1", 0]}}, "2", "2")
    first, second = run(graph, "1", 1), run(graph, "2.0", 2)
    assert not torch.equal(first, second)
    assert torch.equal(drawn(graph, "1"), first) and torch.equal(drawn(graph, "2"), second)
    assert torch.equal(drawn(told(), "2"), second)  # a later queue, in which the host has the node from its cache
    refused(["watched MODEL"], drawn, told(model="another"), "2")
    for seed in range(attention_maps_.KEPT):
        run(told(seed=10 + seed), "1", 10 + seed)
    refused(["change its seed"], drawn, graph, "1")


@check
def what_has_no_cross_attention_or_no_words_is_refused():
    model, bridge = model_and_bridge("flow")
    positive = encode(bridge, PROMPT)
    sd3 = comfy.sd.load_diffusion_model(str(MODELS / "diffusion_models" / "tiny-sd3.safetensors"))
    cosmos = vision_model_.load(MODELS / "diffusers" / "dit-cosmos")
    for other in (sd3, cosmos):
        kind = type(other.model.diffusion_model).__name__
        refused(["cross-attention", "UNetModel", "PixArtMS", kind], attention_maps_.watch, other, positive)
    refused(["Bridge Text Encode"], attention_maps_.watch, model, [[positive[0][0], {}]])
    maps = attention_maps_.AttentionMaps(*context_tokens_.find_context_tokens(positive))
    refused(["watched MODEL"], maps.maps)


def with_attention(bridge, where, side=8):
    """Maps in which each word gets all attention at one place, on top of a little everywhere."""
    context, heard = context_tokens_.find_context_tokens(encode(bridge, PROMPT, long_prompts="full length"))
    sums = torch.full((1, context.shape[1], side, side), 1e-3)
    for (_, tokens), (row, column) in zip(heard.words(), where, strict=True):
        sums[0, tokens, row, column] = 1.0
    return attention_maps_.AttentionMaps(
        context, heard, [attention_maps_.Sampling((side, side), {(side, side): (sums, 1)})]
    )


@check
def a_word_is_drawn_where_it_is_heard():
    bridge = connected("flow", language_model("bert"))
    places = [(i // 8 * 4, i % 8) for i in range(len(WORDS))]
    maps = with_attention(bridge, places)
    assert [word for word, _ in maps.tokens.words()] == WORDS
    images = torch.rand(1, 128, 128, 3)
    for measure, scale in itertools.product(heatmaps_.MEASURES, heatmaps_.SCALES):
        masks = heatmaps_.draw(images, maps, "", measure, scale)[1]
        assert masks.shape == (len(WORDS), 128, 128) and masks.min() >= 0 and masks.max() <= 1
        for mask, (row, column) in zip(masks, places, strict=True):
            peak = int(mask.argmax())
            assert (peak // 128 // 16, peak % 128 // 16) == (row, column)
    sheets, _ = heatmaps_.draw(images, maps, "", "attention", "each word")
    picture = sheets[0, heatmaps_.GAP + heatmaps_.STRIP :, heatmaps_.GAP :][: heatmaps_.PANEL, : heatmaps_.PANEL]
    assert sheets.shape[0] == 1 and (picture.mean() - images.mean()).abs() < 0.05
    strip = sheets[0, heatmaps_.GAP : heatmaps_.GAP + heatmaps_.STRIP]
    assert (strip < 0.5).any() and (strip > 0.9).float().mean() > 0.5  # dark letters on white
    (red,) = heatmaps_.draw(images, maps, "red circle", "attention", "each word")[1]
    assert red[:16, 16:48].max() > 0.9 and red[64:].max() < 0.1
    refused(["'cat'", "red circle"], heatmaps_.draw, images, maps, "cat", "attention", "each word")
    refused(
        ["1 pictures", "2 were given"], heatmaps_.draw, images.repeat(2, 1, 1, 1), maps, "", "attention", "each word"
    )


@check
def bridge_tokens_lists_what_is_heard_and_what_was_cut():
    bridge = connected("bert")
    text = "a (red:1.3) circle left of a blue square and a candy and a candy"
    conditioning = encode(bridge, text, weights=True)
    output = node_classes["LaViBridgeTokens"].execute(conditioning)
    lines = output.args[0].splitlines()
    norms = conditioning[0][0][0].norm(dim=-1).tolist()
    assert len(lines) == 1 + 16 + 1 and lines[-1].startswith("CUT OFF") and "candy" in lines[-1], lines
    for i, (line, norm) in enumerate(zip(lines[1:-1], norms, strict=True)):
        number, *_, shown = line.split()
        assert int(number) == i and abs(float(shown) - norm) < 0.01, line
    assert [line for line in lines if " 1.30 " in line] and "special" in lines[1] and "template" in lines[-3], lines
    (short,) = node_classes["LaViBridgeTokens"].execute(encode(bridge, "a")).args
    assert "x padding" in short and "CUT" not in short
    assert str(BASE) not in short
    joined = stock.ConditioningConcat().concat(encode(bridge, "a"), encode(bridge, "b"))[0]
    assert "and 16 vectors of another conditioning" in node_classes["LaViBridgeTokens"].execute(joined).args[0]
    others = [[conditioning[0][0][:, :5], {}]]
    (parts,) = node_classes["LaViBridgeTokens"].execute([*conditioning, *encode(bridge, "a"), *others]).args
    assert parts.split("\n\n") == [
        f"PART 1 of 3\n{output.args[0]}",
        f"PART 2 of 3\n{short}",
        "PART 3 of 3\n5 vectors of which nobody says what they are: no bridge's",
    ]
    refused(["Bridge Text Encode"], node_classes["LaViBridgeTokens"].execute, [[conditioning[0][0], {}]])
