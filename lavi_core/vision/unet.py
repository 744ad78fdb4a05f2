"""U-Nets of diffusers' UNet2DConditionModel: Stable Diffusion 1, latent diffusion, SDXL, Kolors, and any other."""

from __future__ import annotations

from .added_conditions import nothing, plainly, pooled_and_sizes
from .keys import KOHYA
from .target import VisionTarget

# The authors adapt ResnetBlock2D, Attention and GEGLU: 224 sites in Stable Diffusion 1.4. Not adapted: proj_in and
# proj_out, the second feed-forward matrix, conv_in and conv_out, the samplers, the time embedding.
SITES = (
    r"(down_blocks\.\d+|up_blocks\.\d+|mid_block)\."
    r"(attentions\.\d+\.(transformer_blocks\.\d+\.(attn[12]\.(to_q|to_k|to_v|to_out\.0)|ff\.net\.0\.proj)"
    r"|to_q|to_k|to_v|to_out\.0)"
    r"|resnets\.\d+\.(conv1|conv2|conv_shortcut|time_emb_proj))"
)

PLAIN = plainly(nothing)

SD1 = VisionTarget(
    name="sd1",
    diffusers_class="UNet2DConditionModel",
    predict=PLAIN,
    lora_sites=SITES,
    keys=KOHYA,
    told_by={"cross_attention_dim": 768, "addition_embed_type": None},
    latent_scale=0.18215,
)

LDM = VisionTarget(
    name="ldm",
    diffusers_class="UNet2DConditionModel",
    predict=PLAIN,
    lora_sites=SITES,
    keys=KOHYA,
    told_by={"cross_attention_dim": 1280, "addition_embed_type": None},
    latent_scale=0.18215,
)

SDXL = VisionTarget(
    name="sdxl",
    diffusers_class="UNet2DConditionModel",
    predict=plainly(pooled_and_sizes),
    lora_sites=SITES,
    keys=KOHYA,
    told_by={"addition_embed_type": "text_time"},
    size_ids=6,
    latent_scale=0.13025,
)

# An SDXL that hears one language model alone (ChatGLM3), through a linear map of its own; ComfyUI has no class for it.
KOLORS = VisionTarget(
    name="kolors",
    diffusers_class="UNet2DConditionModel",
    predict=plainly(pooled_and_sizes),
    lora_sites=SITES,
    keys=KOHYA,
    told_by={"addition_embed_type": "text_time", "encoder_hid_dim_type": "text_proj"},
    width_key="encoder_hid_dim",
    size_ids=6,
    latent_scale=0.13025,
)

# Of SDXL's class too, and no row: a second network (arXiv 2307.01952, 2.5), which is told five sizes, one of them a
# score, beside OpenCLIP-G's pooled vector. 2560 = 1280 + 5 * 256.
SDXL_REFINER = {
    "cross_attention_dim": 1280,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2560,
}

UNET = VisionTarget(
    name="unet",
    diffusers_class="UNet2DConditionModel",
    predict=PLAIN,
    lora_sites=SITES,
    keys=KOHYA,
    told_by={"addition_embed_type": None},
)
