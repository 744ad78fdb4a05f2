#!/usr/bin/env bash
# diffusers and peft: a DoRA of weight 0 is still at work, and its weight is not how much of it is heard.
#
# Guess: set_adapters(name, 0), and a call with {"scale": 0}, leave an adapter out, a DoRA as a LoRA; weight 0.5 is half
#   way, weight 0.1 a tenth of the way.
# Seen (diffusers 0.42.1, peft 0.21.2): the weight is put on the low-rank part alone. The trained lengths of the rows
#   stay at full strength whatever the weight is: at weight 0 this network's prediction is 0.8 as far away as at weight
#   1, and no nearer than at 0.1. Nothing is warned of. A plain LoRA of weight 0 is out, and so is a DoRA after
#   disable_adapters().
# Why it matters: one compares "with and without" by weight 0, and turns an adapter down where it is too strong. ComfyUI
#   (0.3.64, comfy/weight_adapter/base.py, weight_decompose) goes the other way: it makes the whole new weight and takes
#   the strength's share of the way to it, so that 0 is off and 0.5 is half: one file and one strength, two pictures.
# Instead: disable_adapters() to leave a DoRA out. For half of it merge it at weight 1 and take half of the difference
#   of the weights, as the last line below does.
# Source: peft/tuners/lora/dora.py, DoraLinearLayer.forward: (magnitude / norm - 1) * base_result has no scaling.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==5.24.0 \
    diffusers==0.42.1 peft==0.21.2

HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$work/venv/bin/python" -W ignore - <<'PYTHON'
import copy, importlib.metadata, sys
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig

torch.manual_seed(0)
plain = UNet2DConditionModel(
    sample_size=8, block_out_channels=(32, 32), layers_per_block=1, cross_attention_dim=16, attention_head_dim=8,
    norm_num_groups=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")).eval()
picture, words = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 16)

def adapted(dora):
    torch.manual_seed(1)
    unet = copy.deepcopy(plain)
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, use_dora=dora, target_modules=["to_q", "to_k", "to_v"]), "style")
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if "lora_magnitude" in name:
                weight.mul_(1 + 0.3 * torch.rand_like(weight))
            elif "lora_" in name:
                weight.normal_(std=0.1)
    return unet

@torch.no_grad()
def read(unet, **given):
    return unet(picture, 500, words, **given).sample

def away(prediction):
    return float((prediction - start).norm() / start.norm())

def at(unet, weight):
    unet.set_adapters("style", weight)
    return away(read(unet))

start = read(plain)
lora, dora = adapted(False), adapted(True)
whole = {"lora": at(lora, 1.0), "dora": at(dora, 1.0)}
shares = {w: (at(lora, w) / whole["lora"], at(dora, w) / whole["dora"]) for w in (1.0, 0.5, 0.1, 0.0)}
of_a_call = away(read(dora, cross_attention_kwargs={"scale": 0.0})) / whole["dora"]
dora.set_adapters("style", 1.0)
dora.disable_adapters()
disabled = away(read(dora)) / whole["dora"]
dora.enable_adapters()
dora.fuse_lora()
dora.unload_lora()
half = copy.deepcopy(plain)
with torch.no_grad():
    for ours, merged in zip(half.parameters(), dora.parameters(), strict=True):
        ours.lerp_(merged, 0.5)
print("versions:", *(f"{name} {importlib.metadata.version(name)}" for name in ("diffusers", "peft", "torch")))
print("guess:    weight 0 is the network without the adapter, of a LoRA and of a DoRA")
print("seen:     a DoRA is never out: the lengths of its rows have no weight")
print("output:   change of the prediction, of the change at weight 1")
print("          weight | LoRA | DoRA")
for weight, (low_rank, decomposed) in shares.items():
    print(f"          {weight:6} | {low_rank:4.2f} | {decomposed:4.2f}")
print(f"          DoRA in a call with scale 0: {of_a_call:.2f}; after disable_adapters(): {disabled:.2f}")
print(f"          half of the way between the plain and the merged weights: {away(read(half)) / whole['dora']:.2f}")
if shares[0.0][0] > 1e-5 or disabled > 1e-5 or shares[0.0][1] < 0.3 or of_a_call < 0.3:
    sys.exit("No longer so: a DoRA of weight 0 is out of the network.")
PYTHON
