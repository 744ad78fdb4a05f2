#!/usr/bin/env bash
# diffusers: fuse_qkv_projections takes a LoRA of q, k and v out of the network without a word, before it is loaded or after.
#
# Guess: fusing the projections of q, k and v changes the speed and nothing that is computed, or refuses a LoRA that lies on them.
# Seen (diffusers 0.42.1, peft 0.21.2): the fused matrix is made of the weights under the LoRA, and is what is called from then
#   on. A LoRA of to_q, to_k and to_v is without effect in Flux and AuraFlow, whether it was there before or comes after, while
#   it says that it is active; a U-Net keeps that of its cross-attention's to_q alone, which is not fused. A LoRA that was put
#   into the weights first (fuse_lora, in peft's words merged) is heard in full.
# Why it matters: the projections of q, k and v are the usual places of a LoRA, those of a bridge's vision model too, and to fuse
#   them is one of the steps that make a compiled pipeline fast.
# Instead: fuse the LoRA before the projections, and load no other one after.
# Source: diffusers/models/attention_processor.py, Attention.fuse_projections, which reads to_q.weight of peft's layers;
#   diffusers/models/transformers/transformer_flux.py, _get_fused_projections.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==5.24.0 diffusers==0.42.1 peft==0.21.2

HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import sys
import diffusers, peft, torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer

def unet():
    model = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=32, norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
    latents, context = torch.randn(1, 4, 8, 8), torch.randn(1, 6, 32)
    return model, lambda: model(latents, torch.tensor([300]), context).sample

def flux():
    model = diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8])
    latents, context, pooled = torch.randn(1, 16, 16), torch.randn(1, 6, 32), torch.randn(1, 32)
    places = torch.stack(torch.meshgrid(torch.zeros(1), torch.arange(4.0), torch.arange(4.0), indexing="ij"), -1)
    return model, lambda: model(latents, context, pooled, torch.tensor([0.3]), places.reshape(-1, 3), torch.zeros(6, 3)).sample

def auraflow():
    model = diffusers.AuraFlowTransformer2DModel(
        sample_size=16, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=32, caption_projection_dim=32, out_channels=4, pos_embed_max_size=64)
    latents, context = torch.randn(1, 4, 16, 16), torch.randn(1, 6, 32)
    return model, lambda: model(latents, context, torch.tensor([0.3])).sample

def merged(model):
    """Every LoRA put into the weights under it, as fuse_lora of a pipeline does."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.merge()

def predictions(build, order):
    """What the network says before the first and after each of the steps of order."""
    torch.manual_seed(0)
    model, call = build()
    model.eval()
    found = [call()]
    for step in order:
        if step == "lora":
            torch.manual_seed(1)
            model.add_adapter(LoraConfig(r=8, lora_alpha=8, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False))
        elif step == "merge":
            merged(model)
        else:
            model.fuse_qkv_projections()
        found.append(call())
    return found

def left(found, plain, full):
    """How much of the change from plain to full is left in found."""
    return ((found - plain).norm() / (full - plain).norm()).item()

print(f"versions: diffusers {diffusers.__version__}, peft {peft.__version__}, torch {torch.__version__}")
print("guess:    all of the LoRA's change of the prediction is left, in every order")
print("seen:     none of it in Flux and AuraFlow, a part in a U-Net, unless it is in the weights")
print("output:   left of the change | LoRA, then fused | fused, then LoRA | LoRA in the weights, then fused")
wrong = []
with torch.no_grad():
    for build in (unet, flux, auraflow):
        plain, full, then_fused = predictions(build, ["lora", "qkv"])
        fused, then_lora = predictions(build, ["qkv", "lora"])[1:]
        in_weights = predictions(build, ["lora", "merge", "qkv"])[-1]
        shares = [left(found, plain, full) for found in (then_fused, then_lora, in_weights)]
        print(f"          {type(build()[0]).__name__:30} | {shares[0]:.2f} | {shares[1]:.2f} | {shares[2]:.2f}")
        limit = 0.5 if build is unet else 1e-4
        if not (torch.allclose(fused, plain, atol=1e-5) and max(shares[:2]) < limit and abs(shares[2] - 1) < 0.01):
            wrong.append(build.__name__)
if wrong:
    sys.exit(f"no longer so: {', '.join(wrong)}")
PYTHON
