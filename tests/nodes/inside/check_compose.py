"""A bridged model is a model: whatever the host can do with one gives the same as if its weights had been so.

Each case is run on three models: plain, bridged, and one that was given the bridged weights for its own.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import functools
import itertools

import comfy.cldm.cldm
import comfy.controlnet
import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.utils
import torch
from host_side import MODELS, check, connected, language_model, refused, same_bits, vision_, vision_model_, weights

import nodes as stock

SIDE = 8


@functools.cache
def parts():
    """plain, bridged, merged; positive, negative."""
    bridge = connected("sized", language_model("bert"))
    plain, merged = (vision_model_.load(MODELS / "diffusers" / "tiny-sized") for _ in range(2))
    bridged = vision_.apply(plain, bridge, 1.0)
    comfy.model_management.load_models_gpu([bridged], force_full_load=True)
    merged.model.diffusion_model.load_state_dict(weights(bridged.model.diffusion_model))
    comfy.model_management.unload_all_models()
    return (plain, bridged, merged), bridge.encode("a red circle")[0], bridge.encode("")[0]


def latents(batch=1, side=SIDE):
    return {"samples": torch.randn(batch, 4, side, side, generator=torch.manual_seed(3))}


def sample(model, positive, negative, latent, sampler="euler", scheduler="simple", steps=2, **options):
    done = stock.common_ksampler(model, 7, steps, 3.0, sampler, scheduler, positive, negative, latent, **options)
    return done[0]["samples"]


def composes(run, tolerance=1e-4):
    """``run(model, positive, negative)`` of the bridged model is that of the merged one, and not of the plain one."""
    (plain, bridged, merged), positive, negative = parts()
    first, ours, theirs = (run(model, positive, negative) for model in (plain, bridged, merged))
    assert ours.isfinite().all() and ours.std() > 0
    size = theirs.abs().max()
    assert (ours - theirs).abs().max() <= tolerance * size, ((ours - theirs).abs().max(), size)
    assert (ours - first).abs().max() > 1e-3 * size, "the bridge changed nothing"
    return ours


@check
def every_sampler_and_scheduler_takes_a_bridged_model():
    kinds = comfy.samplers.KSampler
    assert len(kinds.SAMPLERS) > len(kinds.SCHEDULERS) > 8
    for sampler, scheduler in zip(kinds.SAMPLERS, itertools.cycle(kinds.SCHEDULERS), strict=False):
        composes(lambda m, p, n, s=sampler, c=scheduler: sample(m, p, n, latents(), s, c))


@check
def the_custom_sampler_takes_a_bridged_model():
    def run(model, positive, negative):
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "karras", 3)
        sampler, start = comfy.samplers.sampler_object("dpmpp_2m"), latents()["samples"]
        noise = comfy.sample.prepare_noise(start, 5)
        return comfy.sample.sample_custom(model, noise, 3.0, sampler, sigmas, positive, negative, start, seed=5)

    composes(run)


@check
def a_bridge_and_a_users_lora_add_up_in_either_order():
    """The stock loader's LoRA before Apply Bridge, behind it, and on the merged weights."""
    bridge = connected("flow", language_model("bert"))
    plain, merged = (vision_model_.load(MODELS / "diffusers" / "tiny-flow") for _ in range(2))

    def load(model):
        return stock.LoraLoaderModelOnly().load_lora_model_only(model, "a-bridge.safetensors", 0.6)[0]

    bridged = vision_.apply(plain, bridge, 1.0)
    comfy.model_management.load_models_gpu([bridged], force_full_load=True)
    merged.model.diffusion_model.load_state_dict(weights(bridged.model.diffusion_model))
    comfy.model_management.unload_all_models()
    positive, negative = bridge.encode("a red circle")[0], bridge.encode("")[0]
    before, after, theirs, alone = (
        sample(model, positive, negative, latents())
        for model in (vision_.apply(load(plain), bridge, 1.0), load(bridged), load(merged), bridged)
    )
    size = theirs.abs().max()
    assert (before - theirs).abs().max() < 1e-4 * size and (after - theirs).abs().max() < 1e-4 * size
    assert (after - alone).abs().max() > 1e-3 * size


def controlnet(model):
    """A random ControlNet of the model's shape, whose outputs are not zero."""
    config = dict(model.model.model_config.unet_config)
    for key in ("out_channels", "transformer_depth_output", "dtype", "disable_unet_model_creation"):
        config.pop(key, None)
    torch.manual_seed(11)
    network = comfy.cldm.cldm.ControlNet(**config, hint_channels=3, operations=comfy.ops.disable_weight_init)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return comfy.controlnet.ControlNet(network.eval(), load_device=model.load_device)


@check
def a_controlnet_steers_a_bridged_model():
    (plain, *_), _, _ = parts()
    control, hint = controlnet(plain), torch.rand(1, 8 * SIDE, 8 * SIDE, 3)

    def run(model, positive, negative):
        apply = stock.ControlNetApplyAdvanced().apply_controlnet
        positive, negative = apply(positive, negative, control, hint, 1.0, 0.0, 1.0)
        return sample(model, positive, negative, latents())

    steered, free = composes(run), composes(lambda m, p, n: sample(m, p, n, latents()))
    assert (steered - free).abs().max() > 1e-3 * free.abs().max()


@check
def regions_have_their_own_prompts():
    left = torch.zeros(1, 8 * SIDE, 8 * SIDE)
    left[..., : 4 * SIDE] = 1.0
    other = connected("sized", language_model("bert")).encode("two elephants")[0]

    def area(model, positive, negative):
        mine = stock.ConditioningSetArea().append(positive, 4 * SIDE, 8 * SIDE, 0, 0, 1.0)[0]
        return sample(model, [*mine, *other], negative, latents())

    def mask(model, positive, negative):
        mine = stock.ConditioningSetMask().append(positive, left, "default", 1.0)[0]
        rest = stock.ConditioningSetMask().append(other, 1 - left, "default", 1.0)[0]
        return sample(model, [*mine, *rest], negative, latents())

    whole = composes(lambda m, p, n: sample(m, p, n, latents()))
    for run in (area, mask):
        assert (composes(run) - whole).abs().max() > 1e-3 * whole.abs().max()


@check
def pictures_are_redrawn_and_filled_in():
    """img2img starts from the latents; outside of a noise mask they come back as they were."""
    start = latents()
    whole = composes(lambda m, p, n: sample(m, p, n, start, denoise=1.0, steps=3))
    part = composes(lambda m, p, n: sample(m, p, n, start, denoise=0.34, steps=3))
    assert (part - start["samples"]).norm() < (whole - start["samples"]).norm()
    mask = torch.zeros(1, SIDE, SIDE)
    mask[:, :, : SIDE // 2] = 1.0
    masked = stock.SetLatentNoiseMask().set_mask(start, mask)[0]
    filled = composes(lambda m, p, n: sample(m, p, n, masked))
    torch.testing.assert_close(filled[..., SIDE // 2 :], start["samples"][..., SIDE // 2 :], atol=1e-4, rtol=0)
    assert (filled - start["samples"])[..., : SIDE // 2].abs().max() > 0.1
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(MODELS / "vae" / "tiny-taesd.safetensors")))
    pixels = torch.rand(1, 8 * SIDE, 8 * SIDE, 3)
    encoded = stock.VAEEncodeForInpaint().encode(
        vae, pixels, comfy.utils.common_upscale(mask[None], *[8 * SIDE] * 2, "nearest-exact", "disabled")[0]
    )[0]
    assert encoded["noise_mask"].any() and composes(lambda m, p, n: sample(m, p, n, encoded)).shape == (
        1,
        4,
        SIDE,
        SIDE,
    )


@check
def batches_and_a_second_pass_on_enlarged_latents_work():
    one = composes(lambda m, p, n: sample(m, p, n, {"samples": torch.zeros(1, 4, SIDE, SIDE)}))
    two = composes(lambda m, p, n: sample(m, p, n, {"samples": torch.zeros(2, 4, SIDE, SIDE)}))
    assert two.shape[0] == 2 and not torch.equal(two[0], two[1])
    torch.testing.assert_close(two[:1], one, atol=1e-3 * float(one.abs().max()), rtol=0)

    def enlarged(model, positive, negative):
        first = {"samples": sample(model, positive, negative, latents())}
        larger = stock.LatentUpscale().upscale(first, "bilinear", 12 * SIDE, 12 * SIDE, "disabled")[0]
        return sample(model, positive, negative, larger, denoise=0.5)

    assert composes(enlarged).shape[2:] == (12, 12)


@check
def other_packs_attention_patches_stay_in_place():
    """A patch before Apply Bridge and the same behind it, as adapters for picture prompts set them."""
    (plain, *_), positive, negative = parts()
    bridge = connected("sized", language_model("bert"))

    def patched(model):
        model = model.clone()
        model.set_model_attn2_patch(lambda n, context, value, options: (n, context * 0.5, value))
        return model

    before = sample(vision_.apply(patched(plain), bridge, 1.0), positive, negative, latents())
    after = composes(lambda m, p, n: sample(patched(m), p, n, latents()))
    assert torch.equal(before, after)
    assert not torch.equal(after, composes(lambda m, p, n: sample(m, p, n, latents())))


@check
def a_second_bridge_on_a_model_is_refused():
    bridge, other = connected("flow", language_model("bert")), connected("bert")
    model = vision_model_.load(MODELS / "diffusers" / "tiny-flow")
    once = vision_.apply(model, bridge, 1.0)
    for second in (bridge, other):
        refused(["flow.safetensors", second.name, "already", "strength"], vision_.apply, once, second, 0.5)
        refused(["flow.safetensors", second.name], vision_.apply, once.clone(), second, 1.0)
        assert vision_.apply(once, second, 0.0) is once
    assert vision_.apply(model, other, 1.0).get_attachment(vision_.APPLIED) == "bert.safetensors"


@check
def without_the_node_the_model_is_what_it_was_to_the_bit():
    (plain, bridged, _), positive, negative = parts()
    comfy.model_management.unload_all_models()
    before, stood = sample(plain, positive, negative, latents()), weights(plain.model)
    assert not torch.equal(sample(bridged, positive, negative, latents()), before)
    assert torch.equal(sample(plain, positive, negative, latents()), before)
    assert same_bits(stood, weights(plain.model))
