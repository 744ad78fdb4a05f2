#!/usr/bin/env bash
# diffusers: SDXL without a negative prompt and with an empty one are guided away from two different things.
#
# Guess: leaving negative_prompt out is negative_prompt="", as with SD 1.5 and SD 3, and as an empty text field in a
#   node graph is; or, by the docstring of force_zeros_for_empty_prompt ("shall be forced to always be set to 0"), both
#   are zeros.
# Seen (diffusers 0.42.1): with force_zeros_for_empty_prompt, which SDXL's base has and which is the default, a prompt
#   that is left out is zeros, states and pooled vector, and "" is what the two CLIPs say of no words: another negative,
#   and another picture. SD 1.5's pipeline and SD 3's encode "" in both cases, so that the same call means another
#   thing by class.
# Why it matters: an A-B of "the same seed" between diffusers and a node graph compares two unconditionals; scores of a
#   bridge on SDXL against those of its own encoder do as well, where one was drawn with negative_prompt="" and the
#   other without. A LoRA that was trained with some captions left empty has heard the encoded one.
# Instead: give negative_prompt="" for the picture that ComfyUI draws with an empty field, and in any comparison; leave
#   it out for what SDXL's base was trained with (in ComfyUI: ConditioningZeroOut behind the text).
# Source: diffusers/pipelines/stable_diffusion_xl/pipeline_stable_diffusion_xl.py, encode_prompt: "negative_prompt is
#   None and self.config.force_zeros_for_empty_prompt".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==5.24.0 \
    diffusers==0.42.1

HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$work/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata, json, sys, tempfile
from pathlib import Path
import torch
from diffusers import (
    AutoencoderKL, EulerDiscreteScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

torch.manual_seed(0)
folder = Path(tempfile.mkdtemp())
letters = "abcdefghijklmnopqrstuvwxyz"
words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
(folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
(folder / "merges.txt").write_text("#version: 0.2\n")
tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)

def encoder(kind):
    return kind(CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, projection_dim=16, bos_token_id=len(words) - 2, eos_token_id=len(words) - 1)).eval()

def network(width, **given):
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 32), layers_per_block=1, cross_attention_dim=width, attention_head_dim=8,
        norm_num_groups=8, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **given).eval()

vae = AutoencoderKL(block_out_channels=(16,), norm_num_groups=8, sample_size=8).eval()
sd = StableDiffusionPipeline(vae, encoder(CLIPTextModel), tokenizer, network(16), EulerDiscreteScheduler(), None, None,
                             requires_safety_checker=False)
sdxl = StableDiffusionXLPipeline(
    vae, encoder(CLIPTextModel), encoder(CLIPTextModelWithProjection), tokenizer, tokenizer,
    network(32, addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=16 + 6 * 8), EulerDiscreteScheduler(), add_watermarker=False)

@torch.no_grad()
def negative(pipeline, **given):
    return pipeline.encode_prompt(
        "a red cube", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True, **given)[1]

def drawn(pipeline, **given):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline("a red cube", num_inference_steps=4, guidance_scale=7.5, height=8, width=8, output_type="latent",
                    generator=torch.Generator("cpu").manual_seed(0), **given).images

print("versions:", *(f"{name} {importlib.metadata.version(name)}" for name in ("diffusers", "transformers", "torch")))
print("SDXL's force_zeros_for_empty_prompt, as it is by default:", sdxl.config.force_zeros_for_empty_prompt)
print('guess:    no negative prompt and "" are one')
print('seen:     with SDXL, zeros and the encoded ""; with SD 1.5, the encoded "" both times')
print('output:             | largest of the negative: left out, "" | relative difference of the latents')
sizes, differences = {}, {}
for name, pipeline in (("SD 1.5", sd), ("SDXL", sdxl)):
    sizes[name] = [float(negative(pipeline, **given).abs().max()) for given in ({}, {"negative_prompt": ""})]
    without, empty = drawn(pipeline), drawn(pipeline, negative_prompt="")
    differences[name] = float((without - empty).norm() / empty.norm())
    print(f"          {name:9} | {sizes[name][0]:.2f}, {sizes[name][1]:.2f} | {differences[name]:.1e}")
if sizes["SDXL"][0] != 0 or sizes["SDXL"][1] == 0 or differences["SDXL"] < 1e-3 or differences["SD 1.5"] != 0:
    sys.exit('No longer so: with SDXL, a negative prompt that is left out and an empty one are the same.')
PYTHON
