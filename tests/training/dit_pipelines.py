"""diffusers' pipelines for the models of ``dits.py``, given states in the place of prompts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import torch
from lavi_bridge.lavi_core.vision.call import pack, patchify, unpack
from lavi_bridge.tests.training import dits
from lavi_bridge.tests.training.dits import Prompt
from torch import Tensor, nn

STEPS = 4  # of which every scheduler's default spacing is the even one
NONE: Any = None  # for the parts of a pipeline that are not run
# (pipeline, noise [1 C h w], prompt, negative prompt, guidance) -> latents as the network sees them
Draw = Callable[[Any, Tensor, Prompt, Prompt, float], Tensor]


def options(noise: Tensor, pixels: int = 8) -> dict[str, Any]:
    h, w = noise.shape[-2:]
    return {
        "height": h * pixels,
        "width": w * pixels,
        "num_inference_steps": STEPS,
        "output_type": "latent",
        "prompt": None,
    }


EVEN = np.linspace(1.0, 1 / STEPS, STEPS)


def draw_sd3(pipe: Any, noise: Tensor, prompt: Prompt, negative: Prompt, guidance: float) -> Tensor:
    return pipe(
        prompt_embeds=prompt.context,
        pooled_prompt_embeds=prompt.pooled,
        negative_prompt_embeds=negative.context,
        negative_pooled_prompt_embeds=negative.pooled,
        latents=noise,
        guidance_scale=guidance,
        sigmas=EVEN.tolist(),
        **options(noise),
    ).images


def draw_flux(pipe: Any, noise: Tensor, prompt: Prompt, negative: Prompt, guidance: float) -> Tensor:
    found = pipe(
        prompt_embeds=prompt.context,
        pooled_prompt_embeds=prompt.pooled,
        negative_prompt_embeds=negative.context,
        negative_pooled_prompt_embeds=negative.pooled,
        latents=pack(noise),
        true_cfg_scale=guidance,
        guidance_scale=3.5,
        **options(noise),
    ).images
    return unpack(found, *noise.shape[-2:])


def draw_z_image(pipe: Any, noise: Tensor, prompt: Prompt, negative: Prompt, guidance: float) -> Tensor:
    """The pipeline's own guidance is one less: cond + g (cond - uncond)."""
    texts = [side.context[0][side.mask[0].bool()] for side in (prompt, negative)]
    return pipe(
        prompt_embeds=texts[:1],
        negative_prompt_embeds=texts[1:],
        latents=noise,
        guidance_scale=guidance - 1,
        **options(noise),
    ).images


def draw_masked(pipe: Any, noise: Tensor, prompt: Prompt, negative: Prompt, guidance: float, **more: Any) -> Tensor:
    return pipe(
        prompt_embeds=prompt.context,
        prompt_attention_mask=prompt.mask,
        negative_prompt_embeds=negative.context,
        negative_prompt_attention_mask=negative.mask,
        latents=noise,
        guidance_scale=guidance,
        **more,
        **options(noise),
    ).images


def draw_qwen_image(pipe: Any, noise: Tensor, prompt: Prompt, negative: Prompt, guidance: float) -> Tensor:
    """Without its pipeline's renormalisation of the guided prediction, which ComfyUI does not have either: it is the
    pipeline's without guidance."""
    found = pipe(
        prompt_embeds=prompt.context,
        prompt_embeds_mask=prompt.mask,
        latents=pack(noise),
        true_cfg_scale=1.0,
        **options(noise),
    ).images
    return unpack(found, *noise.shape[-2:])


def draw_aura_flow(pipe: Any, noise: Tensor, prompt: Prompt, negative: Prompt, guidance: float) -> Tensor:
    sides = [Prompt(padded(side, 256), side.mask, side.pooled) for side in (prompt, negative)]
    return draw_masked(pipe, noise, sides[0], sides[1], guidance, sigmas=EVEN.tolist())


def zeroed(prompt: Prompt) -> Prompt:
    """As a pipeline's own text encoder gives it: nothing stands in the padding."""
    return Prompt(prompt.context * prompt.mask.unsqueeze(-1), prompt.mask, prompt.pooled)


def draw_chroma(pipe: Any, noise: Tensor, prompt: Prompt, negative: Prompt, guidance: float) -> Tensor:
    """The pipeline's own masks let one padding token more be heard."""
    masks = [torch.arange(side.mask.shape[1])[None] <= side.mask.sum() for side in (prompt, negative)]
    found = pipe(
        prompt_embeds=zeroed(prompt).context,
        prompt_attention_mask=masks[0],
        negative_prompt_embeds=zeroed(negative).context,
        negative_prompt_attention_mask=masks[1],
        latents=pack(noise),
        guidance_scale=guidance,
        **options(noise),
    ).images
    return unpack(found, *noise.shape[-2:])


class Harmless:
    def to(self, *_: Any) -> Harmless:
        return self

    def check_text_safety(self, *_: Any) -> bool:
        return True


def cosmos_pipeline(network: Any, scheduler: Any) -> Any:
    pipe = diffusers.Cosmos2TextToImagePipeline(NONE, NONE, network, NONE, scheduler, safety_checker=Harmless())
    scheduler.register_to_config(final_sigmas_type="zero")  # it would leave the last step out
    return pipe


def padded(prompt: Prompt, length: int = 512) -> Tensor:
    """Zeros in the place of padding, and up to ``length`` tokens."""
    context = zeroed(prompt).context
    return nn.functional.pad(context, (0, 0, 0, length - context.shape[1]))


def draw_cosmos(pipe: Any, noise: Tensor, prompt: Prompt, negative: Prompt, guidance: float) -> Tensor:
    return pipe(
        prompt_embeds=padded(prompt),
        negative_prompt_embeds=padded(negative),
        latents=noise.unsqueeze(2),
        guidance_scale=guidance - 1,
        **options(noise),
    ).images


def draw_flux2(pipe: Any, noise: Tensor, prompt: Prompt, negative: Prompt, guidance: float) -> Tensor:
    """The real tokens at the end of 512, zeros before them. The pipeline undoes the batch norm of its VAE."""
    texts = [side.context[:, side.mask[0].bool()] for side in (prompt, negative)]
    texts = [nn.functional.pad(text, (0, 0, 512 - text.shape[1], 0)) for text in texts]
    found = pipe(
        prompt_embeds=texts[0],
        negative_prompt_embeds=texts[1],
        latents=noise,
        guidance_scale=guidance,
        **options(noise, 16),
    ).images
    mean, variance = (values.view(1, -1, 1, 1) for values in (pipe.vae.bn.running_mean, pipe.vae.bn.running_var))
    return (patchify(found) - mean) / (variance + pipe.vae.config.batch_norm_eps).sqrt()


def draw_wan(pipe: Any, noise: Tensor, prompt: Prompt, negative: Prompt, guidance: float) -> Tensor:
    found = pipe(
        prompt_embeds=padded(prompt),
        negative_prompt_embeds=padded(negative),
        latents=noise.unsqueeze(2),
        num_frames=1,
        guidance_scale=guidance,
        **options(noise),
    ).frames
    return found.squeeze(2)


def draw_sana(pipe: Any, noise: Tensor, prompt: Prompt, negative: Prompt, guidance: float) -> Tensor:
    return pipe(
        prompt_embeds=prompt.context,
        prompt_attention_mask=prompt.mask,
        negative_prompt_embeds=negative.context,
        negative_prompt_attention_mask=negative.mask,
        latents=noise,
        guidance_scale=guidance,
        sigmas=EVEN.tolist(),
        use_resolution_binning=False,
        negative_prompt=None,
        **options(noise, 32),
    ).images


def draw_ernie_image(pipe: Any, noise: Tensor, prompt: Prompt, negative: Prompt, guidance: float) -> Tensor:
    texts = [side.context[0][side.mask[0].bool()] for side in (prompt, negative)]
    return pipe(
        prompt_embeds=texts[:1],
        negative_prompt_embeds=texts[1:],
        latents=noise,
        guidance_scale=guidance,
        **options(noise, 16),
    ).images


def draw_kolors(pipe: Any, noise: Tensor, prompt: Prompt, negative: Prompt, guidance: float) -> Tensor:
    return pipe(
        prompt_embeds=prompt.context,
        pooled_prompt_embeds=prompt.pooled,
        negative_prompt_embeds=negative.context,
        negative_pooled_prompt_embeds=negative.pooled,
        latents=noise,
        guidance_scale=guidance,
        **options(noise),
    ).images


PIPELINES: dict[str, tuple[Callable[[Any, Any], Any], Draw]] = {
    "sd3": (lambda network, s: diffusers.StableDiffusion3Pipeline(network, s, *[NONE] * 7), draw_sd3),
    "flux": (lambda network, s: diffusers.FluxPipeline(s, NONE, NONE, NONE, NONE, NONE, network), draw_flux),
    "flux_schnell": (lambda network, s: diffusers.FluxPipeline(s, NONE, NONE, NONE, NONE, NONE, network), draw_flux),
    "z_image": (lambda network, s: diffusers.ZImagePipeline(s, NONE, NONE, NONE, network), draw_z_image),
    "lumina2": (
        lambda network, s: diffusers.Lumina2Pipeline(network, s, NONE, NONE, NONE),
        lambda *given: draw_masked(*given, cfg_normalization=False),
    ),
    "qwen_image": (lambda network, s: diffusers.QwenImagePipeline(s, NONE, NONE, NONE, network), draw_qwen_image),
    "aura_flow": (lambda network, s: diffusers.AuraFlowPipeline(NONE, NONE, NONE, network, s), draw_aura_flow),
    "chroma": (lambda network, s: diffusers.ChromaPipeline(s, NONE, NONE, NONE, network), draw_chroma),
    "cosmos": (cosmos_pipeline, draw_cosmos),
    "flux2": (lambda network, s: diffusers.Flux2KleinPipeline(s, dits.flux2_vae(), NONE, NONE, network), draw_flux2),
    "wan": (lambda network, s: diffusers.WanPipeline(NONE, NONE, NONE, s, network), draw_wan),
    "sana": (lambda network, s: diffusers.SanaPipeline(NONE, NONE, NONE, network, s), draw_sana),
    "ernie_image": (lambda network, s: diffusers.ErnieImagePipeline(network, NONE, NONE, NONE, s), draw_ernie_image),
    "pixart_sigma": (
        lambda network, s: diffusers.PixArtSigmaPipeline(NONE, NONE, NONE, network, s),
        lambda *given: draw_masked(*given, use_resolution_binning=False, negative_prompt=NONE),
    ),
    "kolors": (lambda network, s: diffusers.KolorsPipeline(NONE, NONE, NONE, network, s), draw_kolors),
}
