#!/usr/bin/env bash
# diffusers: a LoRA scale given for one call, or for one fuse, changes the LoRA's weight for good.
#
# Guess: set_adapters(name, 0.5) holds until it is called again. {"scale": s} is of the call that it is given with;
#   fuse_lora(lora_scale=s) is undone by unfuse_lora().
# Seen (diffusers 0.42.1, peft 0.21.2): after one call with scale 0 the LoRA has weight 1, whatever set_adapters had
#   set; after other scales it has its own again. After fuse_lora(lora_scale=0.5) and unfuse_lora() it has half its
#   weight, after two such rounds a quarter. active_adapters() and the configs say the same as before; nothing is
#   warned of.
# Why it matters: "the same seed without the LoRA" is a call with scale 0, and the first thing that one draws of a
#   bridge, whose vision LoRA one turns down (0.5) where it is too strong. All pictures after it are at full strength.
# Instead: to leave a LoRA out call disable_lora() and enable_lora() (set_adapters again works too). Give set_adapters
#   the weight and fuse with lora_scale 1, or call set_adapters after unfuse_lora.
# Source: diffusers/utils/peft_utils.py, unscale_lora_layers (weight 0: "set_scale(adapter_name, 1.0)"; the pipelines'
#   text encoders go the same way); diffusers/loaders/peft.py, _fuse_lora_apply scales, _unfuse_lora_apply does not
#   scale back.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==5.24.0 \
    diffusers==0.42.1 peft==0.21.2

HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$work/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata, sys
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig

def network():
    torch.manual_seed(0)
    made = UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 32), layers_per_block=1, cross_attention_dim=16, attention_head_dim=8,
        norm_num_groups=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")).eval()
    made.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False),
                     "bridge")
    made.set_adapters("bridge", 0.5)
    return made

torch.manual_seed(1)
picture, words = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 16)

@torch.no_grad()
def read(unet, scale=None):
    return unet(picture, 500, words, cross_attention_kwargs=None if scale is None else {"scale": scale}).sample

def weight(unet):
    """alpha / r is 1, so that the scaling is the weight."""
    (found,) = {module.scaling["bridge"] for module in unet.modules() if hasattr(module, "scaling")}
    return found

def fused(unet, rounds):
    for _ in range(rounds):
        unet.fuse_lora(lora_scale=0.5)
        unet.unfuse_lora()

def left_out(unet):
    unet.disable_lora()
    read(unet)
    unet.enable_lora()

rounds = {"a call with scale 0.3": lambda unet: read(unet, 0.3), "a call with scale 0": lambda unet: read(unet, 0.0),
          "fuse_lora(0.5), unfuse_lora()": lambda unet: fused(unet, 1), "the same twice": lambda unet: fused(unet, 2),
          "disable_lora(), a call, enable_lora()": left_out}
print("versions:", *(f"{name} {importlib.metadata.version(name)}" for name in ("diffusers", "peft", "torch")))
print("guess:    weight 0.5 and the same prediction after each of these")
print("seen:     another weight after scale 0, and after a fuse with a scale that was undone")
print("output:   between two predictions                | weight | relative change")
weights, changes = [], []
for name, happens in rounds.items():
    unet = network()
    before = read(unet)
    happens(unet)
    weights.append(weight(unet))
    changes.append(float((read(unet) - before).norm() / before.norm()))
    print(f"          {name:38} | {weights[-1]:6.3f} | {changes[-1]:.1e}")
if [round(w, 6) for w in weights] != [0.5, 1.0, 0.25, 0.125, 0.5] or min(changes[1:4]) < 1e-3:
    sys.exit("No longer so: a scale of one call, or of a fuse that was undone, leaves the LoRA's weight as it was.")
PYTHON
