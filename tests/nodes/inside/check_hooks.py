"""The host's hooks: a LoRA, or a bridge, for single conditionings; on a bridged model, and on a bridge's CLIP."""

# pyright: reportMissingImports=false

from __future__ import annotations

import importlib

import comfy.hooks
import comfy.sd
import torch
from comfy_extras import nodes_hooks
from host_side import (
    MODELS,
    PROMPTS,
    Lines,
    check,
    close,
    connected,
    language_model,
    node_classes,
    refused,
    same_bits,
    vision_,
    vision_model_,
    weights,
)

import nodes as stock

hook_ = importlib.import_module("hyphen-pack.nodes.hook")
SIDE = 8
USERS_LORA = "a-bridge.safetensors"


def model_and_bridge(name="flow"):
    return vision_model_.load(MODELS / "diffusers" / f"tiny-{name}"), connected(name, language_model("bert"))


def sample(model, positive, negative=None, cfg=1.0, steps=2):
    """cfg 1: the positive alone is heard."""
    latent = {"samples": torch.zeros(1, 4, SIDE, SIDE)}
    negative = negative or positive
    return stock.common_ksampler(model, 7, steps, cfg, "euler", "simple", positive, negative, latent)[0]["samples"]


def with_hooks(conditioning, hooks, mask=None):
    return nodes_hooks.ConditioningSetProperties().set_properties(conditioning, 1.0, "default", mask, hooks)[0]


def from_a_stock_encoder(width=24):
    """What the model's own text encoder would give."""
    return [[torch.randn(1, 77, width, generator=torch.manual_seed(9)), {"pooled_output": None}]]


def near(ours, theirs, tolerance=1e-4):
    assert ours.isfinite().all() and (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def differs(ours, theirs):
    assert (ours - theirs).abs().max() > 1e-3 * theirs.abs().max()


@check
def a_users_hook_lora_acts_on_a_bridges_conditioning_alone():
    plain, bridge = model_and_bridge()
    bridged = vision_.apply(plain, bridge, 1.0)
    positive, negative = bridge.encode(PROMPTS[0])[0], bridge.encode("")[0]
    hooks = nodes_hooks.CreateHookLoraModelOnly().create_hook_model_only(USERS_LORA, 0.6)[0]
    whole = stock.LoraLoaderModelOnly().load_lora_model_only(bridged, USERS_LORA, 0.6)[0]
    before = sample(bridged, positive, negative, 3.0)
    near(sample(bridged, with_hooks(positive, hooks)), sample(whole, positive))
    mixed = sample(bridged, with_hooks(positive, hooks), negative, 3.0)
    differs(mixed, before)
    differs(mixed, sample(whole, positive, negative, 3.0))
    assert torch.equal(sample(bridged, positive, negative, 3.0), before)


@check
def keyframes_switch_a_hook_on_and_off():
    plain, bridge = model_and_bridge()
    bridged, positive = vision_.apply(plain, bridge, 1.0), bridge.encode(PROMPTS[0])[0]
    hooks = nodes_hooks.CreateHookLoraModelOnly().create_hook_model_only(USERS_LORA, 0.6)[0]
    on, off = sample(bridged, with_hooks(positive, hooks), steps=4), sample(bridged, positive, steps=4)
    results = []
    for strengths in ((1.0, 1.0), (0.0, 0.0), (1.0, 0.0)):
        frames = None
        for start, strength in zip((0.0, 0.5), strengths, strict=True):
            frames = nodes_hooks.CreateHookKeyframe().create_hook_keyframe(strength, start, frames)[0]
        scheduled = nodes_hooks.SetHookKeyframes().set_hook_keyframes(hooks, frames)[0]
        results.append(sample(bridged, with_hooks(positive, scheduled), steps=4))
    near(results[0], on)
    near(results[1], off)
    differs(results[2], on)
    differs(results[2], off)


def language_lora(clip):
    key = "text_encoders.model.layers.0.self_attn.q_proj"
    height, width = clip.cond_stage_model.state_dict()["model.layers.0.self_attn.q_proj.weight"].shape
    return {f"{key}.lora_up.weight": torch.ones(height, 1), f"{key}.lora_down.weight": torch.ones(1, width)}


def encoded(clip):
    return stock.CLIPTextEncode().encode(clip, PROMPTS[0])[0]


@check
def a_clip_hook_patches_the_language_model():
    """At once, or scheduled by keyframes; the CLIP without the hook is what it was."""
    bridge = connected("llama")
    clip, lora = bridge.clip, language_lora(bridge.clip)
    _, patched = comfy.sd.load_lora_for_models(None, clip, lora, 1.0, 1.0)
    hooks = comfy.hooks.create_hook_lora(lora, 1.0, 1.0)
    before, wanted = encoded(clip)[0][0], encoded(patched)[0][0]
    (hooked,) = nodes_hooks.SetClipHooks().apply_hooks(clip, False, True, hooks)
    ((context, more),) = encoded(hooked)
    near(context, wanted)
    differs(context, before)
    assert more["hooks"] is not None and more["lavi_bridge"].tokens
    assert torch.equal(encoded(clip)[0][0], before)
    close(before, "llama.lora.0")

    frames = nodes_hooks.CreateHookKeyframe().create_hook_keyframe(1.0, 0.0)[0]
    frames = nodes_hooks.CreateHookKeyframe().create_hook_keyframe(0.0, 0.5, frames)[0]
    scheduled = nodes_hooks.SetHookKeyframes().set_hook_keyframes(hooks, frames)[0]
    (timed,) = nodes_hooks.SetClipHooks().apply_hooks(clip, True, False, scheduled)
    early, late = encoded(timed)
    near(early[0], wanted)
    near(late[0], before)
    assert (early[1]["clip_end_percent"], late[1]["clip_start_percent"]) == (0.5, 0.5)
    model = vision_.apply(vision_model_.load(MODELS / "diffusers" / "tiny-flow"), bridge, 1.0)
    with Lines("stand still at timestep 500") as lines:
        drawn = sample(model, [early, late])
    assert not lines  # this bridge does not hear it
    differs(drawn, sample(model, encoded(clip)))


@check
def a_bridge_in_time_behind_scheduled_clip_hooks_is_told_of():
    bridge = connected("timed-flow", language_model("bert"))
    users = comfy.hooks.create_hook_lora({}, 1.0, 1.0)
    frames = nodes_hooks.CreateHookKeyframe().create_hook_keyframe(1.0, 0.0)[0]
    scheduled = nodes_hooks.SetHookKeyframes().set_hook_keyframes(users, frames)[0]
    model = vision_.apply(vision_model_.load(MODELS / "diffusers" / "tiny-flow"), bridge, 1.0)
    for by_schedule in (False, True):
        (clip,) = nodes_hooks.SetClipHooks().apply_hooks(bridge.clip, by_schedule, False, scheduled)
        with Lines("stand still at timestep 500") as lines:
            sample(model, encoded(clip), steps=1)
        assert len(lines) == by_schedule, lines


@check
def a_bridge_as_hook_is_the_bridge_where_it_acts_and_nothing_elsewhere():
    plain, bridge = model_and_bridge()
    positive, own = bridge.encode(PROMPTS[0])[0], from_a_stock_encoder()
    before = weights(plain.model)
    whole = sample(vision_.apply(plain, bridge, 0.7), positive, steps=1)
    alone = sample(plain, own, steps=1)
    hooks, model = node_classes["LaViBridgeHook"].execute(plain, bridge, 0.7).args
    heard = with_hooks(positive, hooks)
    near(sample(model, heard, steps=1), whole)
    differs(sample(model, positive, steps=1), whole)
    assert torch.equal(sample(model, own, steps=1), alone)

    left = torch.zeros(1, SIDE, SIDE)
    left[..., : SIDE // 2] = 1.0
    regions = [*with_hooks(positive, hooks, left), *with_hooks(own, None, 1 - left)]
    near(sample(model, regions, steps=1), left * whole + (1 - left) * alone)
    torch.testing.assert_close(sample(model, own, steps=1), alone, atol=0, rtol=0)
    comfy.model_management.unload_all_models()
    assert same_bits(before, weights(plain.model))


@check
def a_bridge_as_hook_acts_beside_other_hooks():
    plain, bridge = model_and_bridge()
    positive = bridge.encode(PROMPTS[0])[0]
    users = nodes_hooks.CreateHookLoraModelOnly().create_hook_model_only(USERS_LORA, 0.6)[0]
    both, model = hook_.as_hook(plain, bridge, 1.0, users)
    bridged = vision_.apply(plain, bridge, 1.0)
    whole = stock.LoraLoaderModelOnly().load_lora_model_only(bridged, USERS_LORA, 0.6)[0]
    near(sample(model, with_hooks(positive, both)), sample(whole, positive))
    assert len(users) == 1


@check
def a_bridge_that_is_twice_among_the_hooks_is_told_of():
    plain, bridge = model_and_bridge()
    users = nodes_hooks.CreateHookLoraModelOnly().create_hook_model_only(USERS_LORA, 0.6)[0]
    with Lines("is in prev_hooks already") as lines:
        once, _ = hook_.as_hook(plain, bridge, 1.0, users)
        assert not lines
        hook_.as_hook(plain, bridge, 0.5, once)
    assert len(lines) == 1 and "flow.safetensors" in lines[0], lines


@check
def a_bridge_as_hook_is_refused_where_the_bridge_is_or_does_not_fit():
    plain, bridge = model_and_bridge()
    bridged = vision_.apply(plain, bridge, 1.0)
    refused(["flow.safetensors", "already"], hook_.as_hook, bridged, bridge, 1.0)
    other = vision_model_.load(MODELS / "diffusers" / "tiny-wide")
    refused(["flow.safetensors", "40", "24"], hook_.as_hook, other, bridge, 1.0)
    hooks, _ = hook_.as_hook(plain, bridge, 1.0)
    refused(["flow.safetensors", "already"], sample, bridged, with_hooks(bridge.encode("")[0], hooks))
    hooked = nodes_hooks.SetClipHooks().apply_hooks(bridge.clip, False, False, hooks)[0]
    assert torch.equal(encoded(hooked)[0][0], encoded(bridge.clip)[0][0])


@check
def a_bridge_as_hook_puts_the_latents_right():
    """The stock loader takes this PixArt for another, whose latents are scaled otherwise."""
    stocks = comfy.sd.load_diffusion_model(str(MODELS / "diffusion_models" / "tiny-pixart.safetensors"))
    _, model = hook_.as_hook(stocks, connected("pixart", language_model("bert")), 1.0)
    assert abs(model.get_model_object("latent_format").scale_factor - 0.18215) < 1e-6
    assert vision_.APPLIED not in model.attachments


def picture_prompts(plain, count=4):
    """Two ways in which adapters for picture prompts add tokens: to the context, and as attention of their own."""
    width = plain.model.diffusion_model.middle_block[1].transformer_blocks[0].attn2.to_k.in_features
    tokens = torch.randn(1, count, width, generator=torch.manual_seed(13))
    maps = {}

    def more_context(n, context, value, options):
        extra = tokens.to(context).expand(len(context), -1, -1)
        return n, torch.cat([context, extra], 1), torch.cat([value, extra], 1)

    def own_attention(q, k, v, options):
        attention = importlib.import_module("comfy.ldm.modules.attention").attention_basic
        if q.shape[-1] not in maps:
            made = torch.randn(2, tokens.shape[-1], q.shape[-1], generator=torch.manual_seed(17))
            maps[q.shape[-1]] = made / tokens.shape[-1] ** 0.5
        own_k, own_v = ((tokens @ one).to(q).expand(len(q), -1, -1) for one in maps[q.shape[-1]])
        heads = options["n_heads"]
        return attention(q, k, v, heads) + 0.8 * attention(q, own_k, own_v, heads)

    def concatenated(model):
        model = model.clone()
        model.set_model_attn2_patch(more_context)
        return model

    def decoupled(model):
        model = model.clone()
        for block, number in (("input", 1), ("middle", 0), ("output", 0)):
            model.set_model_attn2_replace(own_attention, block, number)
        return model

    return concatenated, decoupled


@check
def adapters_for_picture_prompts_add_their_tokens_to_a_bridges():
    compose = importlib.import_module("check_compose")
    (plain, *_), _, _ = compose.parts()
    free = compose.composes(lambda m, p, n: compose.sample(m, p, n, compose.latents()))
    for adapter in picture_prompts(plain):
        drawn = compose.composes(lambda m, p, n, a=adapter: compose.sample(a(m), p, n, compose.latents()))
        assert (drawn - free).abs().max() > 1e-3 * free.abs().max(), adapter.__name__


@check
def a_lora_hook_with_the_bridges_own_lora_beside_it_is_told_of():
    """Which acts twice where the hook does; that of another is the user's."""
    plain, bridge = model_and_bridge("sd1")
    positive, bridged = bridge.encode(PROMPTS[0])[0], vision_.apply(plain, bridge, 1.0)
    for model, file, told in (
        (bridged, "exported-sd1.safetensors", 1),
        (bridged, USERS_LORA, 0),
        (vision_.apply(plain, bridge, 0.0), "exported-sd1.safetensors", 0),
    ):
        hooks = nodes_hooks.CreateHookLoraModelOnly().create_hook_model_only(file, 0.6)[0]
        with Lines("once more in the hooks of a conditioning") as lines:
            sample(model, with_hooks(positive, hooks), steps=1)
        assert len(lines) == told, (file, lines)
