"""Adapters that mix tokens, hear several layers or the timestep: the same as without the host, at every call."""

# pyright: reportMissingImports=false

from __future__ import annotations

import importlib

import comfy.model_management
import comfy.sample
import comfy.samplers
import torch
from check_save import written
from comfy.patcher_extension import WrappersMP
from host_library import OUT
from host_side import (
    EXPECTED,
    MODELS,
    PROMPTS,
    check,
    close,
    connected,
    context,
    language_model,
    refused,
    vision_,
    vision_model_,
)
from safetensors.torch import save_file

import nodes as stock

timed_ = importlib.import_module("hyphen-pack.nodes.timed")
tokens_ = importlib.import_module("hyphen-pack.nodes.context_tokens")
prompt_syntax_ = importlib.import_module("hyphen-pack.nodes.prompt_syntax")
recorder_ = importlib.import_module("hyphen-pack.nodes.attention_recorder")

MIXING = ("resampled", "refined", "mean", "stacked")
TIMED = {"timed-flow": "tiny-flow", "timed-sd1": "tiny-sd1", "timed-sd3": "dit-sd3", "timed-wan": "dit-wan"}
STEPS, GUIDANCE, SHAPE = 4, 3.0, (1, 4, 8, 8)


def bridge_of(name, strength=0.0):
    return connected(name, language_model("bert"), strength)


def drawn(model, bridge, shape, sampler="euler", scheduler="simple", sides=None):
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(7))
    if model.get_model_object("latent_format").latent_dimensions == 3:
        noise = noise.unsqueeze(2)
    positive, negative = sides or (bridge.encode(text)[0] for text in PROMPTS[:2])
    given = (model, noise, STEPS, GUIDANCE, sampler, scheduler, positive, negative, torch.zeros_like(noise))
    return comfy.sample.sample(*given, seed=3, disable_pbar=True).reshape(shape)


class Seen:
    """What a network is given at each call: its timestep in the host's own unit, and the context's rows. whole: also
    the latents that it is given, and what it says."""

    def __init__(self, model):
        self.calls, self.whole = [], []
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "seen", self.see)

    def see(self, executor, x, t, context, *args, **kwargs):
        self.calls.append((float(t[0]), context.clone()))
        said = executor(x, t, context, *args, **kwargs)
        self.whole.append({"x": x.clone(), "t": t.float().clone(), "said": said.float().clone()})
        return said


@check
def adapters_that_mix_tokens_or_layers_say_the_same():
    for name in MIXING:
        bridge = bridge_of(name)
        for i in (0, 1):
            close(context(bridge, i), f"{name}.{i}")


@check
def a_bridge_that_hears_the_timestep_draws_what_the_standalone_sampler_does():
    """Guided, in a batch of two, on flows and noise prediction; without Apply Bridge, at one timestep, it does not."""
    for name, folder in TIMED.items():
        bridge, model = bridge_of(name), vision_model_.load(MODELS / "diffusers" / folder)
        expected = EXPECTED[f"sampled.{name}"]
        found = drawn(vision_.apply(model, bridge, 1.0), bridge, expected.shape)
        assert (found - expected).abs().max() < 1e-3 * expected.abs().max(), (name, (found - expected).abs().max())
        comfy.model_management.unload_all_models()
        assert (drawn(model, bridge, expected.shape) - expected).abs().max() > 1e-3 * expected.abs().max()


@check
def the_adapter_runs_at_the_networks_own_timestep_whatever_the_sampler():
    """Of a call, both sides in it: the rows of the context are what the core gives at the timestep that the network is
    told, also where a scheduler's levels lie between those of training. What the network says, and what is drawn, is
    kept, for the standalone one to be asked the same (``test_inside``)."""
    kept = {}
    for name, unit in (("timed-sd1", 1.0), ("timed-flow", 1.0)):
        bridge, model = bridge_of(name), vision_model_.load(MODELS / "diffusers" / TIMED[name])
        sides = [bridge.encode(text)[0] for text in PROMPTS[:2]]
        at = [side[0][1][timed_.TIMED].at for side in sides]
        for sampler, scheduler in (
            ("dpmpp_2m", "karras"),
            ("lcm", "simple"),
            ("uni_pc", "normal"),
            ("heunpp2", "normal"),
            ("euler_ancestral", "exponential"),
        ):
            patched = vision_.apply(model, bridge, 1.0)
            seen = Seen(patched)
            kept[f"{name}.{sampler}.latents"] = drawn(patched, bridge, SHAPE, sampler, scheduler, sides)
            levels = comfy.samplers.KSampler(patched, STEPS, "cpu", sampler, scheduler, 1.0).sigmas
            kept[f"{name}.{sampler}.sigmas"] = levels.clone()
            assert len({t for t, _ in seen.calls}) >= STEPS - 1 and all(len(c) == 2 for _, c in seen.calls)
            for t, rows in seen.calls:
                ours = [heard(t * unit) for heard in at]
                gaps = [min(float((row - one).abs().max()) for one in ours) for row in rows.split(1)]
                assert max(gaps) < 1e-5, (name, sampler, t, gaps)
            assert (at[0](900.0) - at[0](100.0)).abs().max() > 1e-3
            for i, call in enumerate(seen.whole):
                kept |= {f"{name}.{sampler}.{i}.{part}": tensor.contiguous() for part, tensor in call.items()}
    save_file(kept, f"{OUT}.calls")


@check
def language_model_runs_once_and_nothing_stays_in_the_model():
    bridge, model = bridge_of("timed-flow"), vision_model_.load(MODELS / "diffusers" / "tiny-flow")
    sides, calls = [bridge.encode(text)[0] for text in PROMPTS[:2]], []
    hook = bridge.encoder.model.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        patched = vision_.apply(model, bridge, 0.0)
        assert patched is not model
        first = drawn(patched, bridge, SHAPE, sides=sides)
        assert torch.equal(first, drawn(vision_.apply(patched, bridge, 0.0), bridge, SHAPE, sides=sides))
        assert not calls
    finally:
        hook.remove()
    assert not model.wrappers.get(WrappersMP.CALC_COND_BATCH) and not model.additional_models
    plain = vision_.apply(model, connected("flow", language_model("bert")), 1.0)
    assert not plain.wrappers.get(WrappersMP.CALC_COND_BATCH) and not plain.additional_models


@check
def a_further_picture_of_the_same_steps_asks_the_adapter_nothing_anew():
    """To the bit; other steps are asked for, and no more is kept than is said."""
    bridge, model = bridge_of("timed-sd1"), vision_model_.load(MODELS / "diffusers" / "tiny-sd1")
    sides, calls = [bridge.encode(text)[0] for text in PROMPTS[:2]], []
    kept = [side[0][1][timed_.TIMED] for side in sides]
    before = [one.nbytes for one in kept]
    patched, adapter = vision_.apply(model, bridge, 1.0), bridge.clip.cond_stage_model.adapter
    hook = adapter.register_forward_hook(lambda *_: calls.append(1))
    try:
        first = drawn(patched, bridge, SHAPE, sides=sides)
        assert len(calls) == 2 * STEPS
        assert torch.equal(first, drawn(patched, bridge, SHAPE, sides=sides)) and len(calls) == 2 * STEPS
        assert not torch.equal(first, drawn(patched, bridge, SHAPE, "euler", "karras", sides=sides))
        assert 2 * STEPS < len(calls) <= 4 * STEPS
        assert all(one.nbytes > size for one, size in zip(kept, before, strict=True))
        size, timed_.KEPT = timed_.KEPT, kept[0].shown.nbytes
        try:
            drawn(patched, bridge, SHAPE, "euler", "exponential", sides=sides)
            assert torch.equal(first, drawn(patched, bridge, SHAPE, sides=sides))
        finally:
            timed_.KEPT = size
        assert kept[0].nbytes == before[0] + kept[0].shown.nbytes
    finally:
        hook.remove()


@check
def regions_and_parts_of_the_sampling_hear_the_timestep():
    """Two prompts side by side, one of a bridge that does not hear it, and one for a part of the sampling."""
    bridge, model = bridge_of("timed-flow"), vision_model_.load(MODELS / "diffusers" / "tiny-flow")
    plain, patched = connected("flow", language_model("bert")), vision_.apply(model, bridge, 1.0)
    (positive, negative), (other, _) = ([b.encode(text)[0] for text in PROMPTS[:2]] for b in (bridge, plain))
    left = stock.ConditioningSetArea().append(positive, 64, 128, 0, 0, 1.0)[0]
    right = stock.ConditioningSetArea().append(other, 64, 128, 64, 0, 1.0)[0]
    early = stock.ConditioningSetTimestepRange().set_range(positive, 0.0, 0.5)[0]
    for parts in (left + right, early + other):
        seen = Seen(both := patched.clone())
        found = drawn(both, bridge, (1, 4, 16, 16), sides=(parts, negative))
        assert found.isfinite().all()
        times = {t for t, rows in seen.calls for row in rows if row.shape[0] == 5}
        assert len(times) == STEPS  # the negative prompt hears each


@check
def tokens_that_were_changed_on_the_way_are_refused():
    bridge, model = bridge_of("timed-flow"), vision_model_.load(MODELS / "diffusers" / "tiny-flow")
    positive, negative = (bridge.encode(text)[0] for text in PROMPTS[:2])
    patched = vision_.apply(model, bridge, 1.0)
    joined = stock.ConditioningConcat().concat(positive, negative)[0]
    words = ["has changed the tokens of a bridge that gives others at each timestep", "take it out"]
    refused(words, drawn, patched, bridge, SHAPE, "euler", "simple", (joined, negative))


@check
def tokens_of_its_own_are_listed_so_and_weighted_in_the_states():
    for name in ("resampled", "timed-flow"):
        bridge = bridge_of(name)
        conditioning = bridge.encode(PROMPTS[0])[0]
        _, listed = tokens_.find_context_tokens(conditioning)
        assert [token.kind for token in listed.tokens] == ["own"] * 5 and listed.words() == []
        model = vision_model_.load(MODELS / "diffusers" / "tiny-flow")
        refused(["tokens of its own, none of which stands for a word"], recorder_.watch, model, conditioning)
        weights = prompt_syntax_.PromptOptions(weights=True)
        heavy, plain = (bridge.encode(text, weights)[0][0][0] for text in ("a (red:1.4) circle", "a red circle"))
        assert heavy.shape == plain.shape and (heavy - plain).abs().max() > 1e-4


@check
def a_bridge_that_hears_the_timestep_is_saved_and_clip_set_last_layer_is_refused_on_several_layers():
    bridge = bridge_of("timed-flow")
    file = written(bridge, None, "saved-timed")
    try:
        again = connected("saved-timed", language_model("bert"), 0.0)
        torch.testing.assert_close(context(again), context(bridge))
    finally:
        file.unlink()
    for name in ("mean", "stacked"):
        clip = bridge_of(name).clip.clone()
        clip.clip_layer(-2)
        refused(["hears several layers"], clip.encode_from_tokens, clip.tokenize("a red circle"))
