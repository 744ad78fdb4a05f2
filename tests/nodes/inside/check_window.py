"""A bridge's LoRA for a part of the sampling: start_percent and end_percent of Apply Bridge to Model."""

# pyright: reportMissingImports=false

from __future__ import annotations

import comfy.model_management
import torch
from check_hooks import USERS_LORA, differs, from_a_stock_encoder, model_and_bridge, near, sample, with_hooks
from comfy_extras import nodes_hooks, nodes_model_merging
from host_side import PROMPTS, Lines, check, node_classes, refused, same_bits, vision_, weights

import nodes as stock

save_ = node_classes["LaViBridgeSave"]


def windowed(plain, bridge, start, end, strength=0.7):
    return node_classes["LaViBridgeApply"].execute(plain, bridge, strength, start, end).args[0]


def patched_weights(model):
    """As a saver of models finds them."""
    comfy.model_management.unload_all_models()
    comfy.model_management.load_models_gpu([model], force_patch_weights=True)
    return weights(model.model)


@check
def a_window_is_the_bridge_inside_and_the_model_outside():
    """Whatever the number of steps; with the end left out of the window too, since no step lies there."""
    plain, bridge = model_and_bridge()
    before, positive = weights(plain.model), bridge.encode(PROMPTS[0])[0]
    whole, none = vision_.apply(plain, bridge, 0.7), plain
    for steps in (1, 4):
        on, off = sample(whole, positive, steps=steps), sample(none, positive, steps=steps)
        near(sample(windowed(plain, bridge, 0.0, 1.0), positive, steps=steps), on)
        near(sample(windowed(plain, bridge, 0.0, 0.999), positive, steps=steps), on)
        near(sample(windowed(plain, bridge, 0.999, 1.0), positive, steps=steps), off)
        differs(on, off)
    early, late = (sample(windowed(plain, bridge, *part), positive, steps=4) for part in ((0.0, 0.5), (0.5, 1.0)))
    for one in (early, late):
        differs(one, on)
        differs(one, off)
    differs(early, late)
    comfy.model_management.unload_all_models()
    assert same_bits(before, weights(plain.model))


@check
def a_window_is_what_keyframes_make_of_the_bridge_as_hook():
    plain, bridge = model_and_bridge()
    positive, negative = bridge.encode(PROMPTS[0])[0], bridge.encode("")[0]
    hooks, model = node_classes["LaViBridgeHook"].execute(plain, bridge, 0.7).args
    frames = None
    for start, strength in ((0.0, 0.0), (0.3, 1.0), (0.8, 0.0)):
        frames = nodes_hooks.CreateHookKeyframe().create_hook_keyframe(strength, start, frames)[0]
    scheduled = nodes_hooks.SetHookKeyframes().set_hook_keyframes(hooks, frames)[0]
    theirs = sample(model, with_hooks(positive, scheduled), with_hooks(negative, scheduled), 3.0, steps=8)
    near(sample(windowed(plain, bridge, 0.3, 0.8), positive, negative, 3.0, steps=8), theirs)


@check
def a_window_stands_beside_a_users_hooks_and_regions():
    plain, bridge = model_and_bridge()
    positive, own = bridge.encode(PROMPTS[0])[0], from_a_stock_encoder()
    hooks = nodes_hooks.CreateHookLoraModelOnly().create_hook_model_only(USERS_LORA, 0.6)[0]
    left = torch.zeros(1, 8, 8)
    left[..., :4] = 1.0
    regions = [*with_hooks(positive, hooks, left), *with_hooks(own, None, 1 - left)]
    before = sample(plain, positive)
    whole, model = vision_.apply(plain, bridge, 0.7), windowed(plain, bridge, 0.0, 0.999)
    near(sample(model, regions), sample(whole, regions))
    near(sample(model, positive), sample(whole, positive))
    assert torch.equal(sample(plain, positive), before) and not plain.hook_patches and not model.hook_patches


@check
def a_window_is_by_the_noise_of_each_call():
    """Also where a sampler looks ahead: as a hook that the host confines by the noise of the call."""
    plain, bridge = model_and_bridge()
    positive = bridge.encode(PROMPTS[0])[0]
    hooks, model = node_classes["LaViBridgeHook"].execute(plain, bridge, 0.7).args
    parts = ((0.0, 0.2537, None), (0.2537, 0.6113, hooks), (0.6113, 1.0, None))
    confined = []
    for start, end, some in parts:
        timed = stock.ConditioningSetTimestepRange().set_range(positive, start, end)[0]
        confined += timed if some is None else with_hooks(timed, some)
    for name in ("euler", "heunpp2", "dpm_2"):
        latent = {"samples": torch.zeros(1, 4, 8, 8)}
        drawn = [
            stock.common_ksampler(one, 7, 6, 1.0, name, "simple", text, positive, latent)[0]["samples"]
            for one, text in ((windowed(plain, bridge, 0.2537, 0.6113), positive), (model, confined))
        ]
        near(*drawn)


@check
def a_merge_and_a_saver_find_the_whole_bridge():
    plain, bridge = model_and_bridge()
    positive = bridge.encode(PROMPTS[0])[0]
    model, whole = windowed(plain, bridge, 0.0, 0.5), vision_.apply(plain, bridge, 0.7)

    def with_whole(one):
        return whole if one is model else one

    merge = nodes_model_merging.ModelMergeSimple().merge
    for one, two in ((model, plain), (plain, model)):
        merged, expected = (merge(*pair, 0.6)[0] for pair in ((one, two), (with_whole(one), with_whole(two))))
        saved, wanted = (patched_weights(each) for each in (merged, expected))
        assert all(torch.equal(saved[name], wanted[name]) for name in wanted)
    near(sample(merge(model, plain, 0.0)[0], positive), sample(plain, positive))
    half, late = merge(model, plain, 0.6)[0], merge(windowed(plain, bridge, 0.999, 1.0), plain, 0.6)[0]
    near(sample(late, positive), sample(plain, positive))  # outside no more is taken out than the merge has left
    differs(sample(half, positive), sample(plain, positive))
    with Lines() as lines:
        sample(windowed(plain, bridge, 0.501, 0.502), positive, steps=4)
        assert len(lines) == 1 and "no step of this sampling" in lines[0], lines


@check
def a_window_of_nothing_and_a_second_bridge_and_a_file_of_it_are_refused():
    plain, bridge = model_and_bridge()
    refused(["0.5", "at no step"], windowed, plain, bridge, 0.5, 0.5)
    model = windowed(plain, bridge, 0.2, 0.6)
    refused(["already", "flow"], vision_.apply, model, bridge, 1.0)
    refused(["0.2", "0.6", "start_percent"], save_.execute, bridge, "lavi_bridges/window", model)
