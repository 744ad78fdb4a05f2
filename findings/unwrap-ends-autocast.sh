#!/usr/bin/env bash
# accelerate: unwrap_model(model, keep_fp32_wrapper=False), as for a checkpoint, ends mixed precision for the whole run.
#
# Guess: unwrap_model gives a bare model to save, and the prepared one goes on training as it was. The documentation
#   calls it "useful before saving the model" and says of keep_fp32_wrapper (default True) "Whether to not remove the
#   mixed precision hook if it was added"; of the prepared model it says nothing.
# Seen (accelerate 1.15.0): on one process the unwrapped model is the prepared one, and with False its autocast is gone
#   for good. From the next step on it computes in float32 and keeps up to twice the bytes for backward. Predictions are
#   float32 before and after (accelerate casts them), the loss goes on falling, nothing is warned of. prepare() gives it
#   back as it is, since it is marked as prepared. In DistributedDataParallel the module inside loses it just so.
# Why it matters: a bridge's run saves its adapter and LoRAs every some hundred steps. With this flag, which reads like
#   "leave the training's things out of the file", it goes out of memory in the step after the first checkpoint, or the
#   rest of it trains slower and at another precision than its configuration says.
# Instead: unwrap_model(model) as it is: state_dict and save_pretrained are the same with the wrapper. Where a module
#   without it is wanted, unwrap copy.deepcopy(model). A loop under accelerator.autocast() does not depend on it.
# Source: accelerate/utils/other.py, extract_model_from_parallel (pops _original_forward, sets model.forward);
#   accelerate/accelerator.py, prepare_model (_is_accelerate_prepared). False was the default once and was turned for
#   what it did to training: huggingface/accelerate#1025.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 accelerate==1.15.0 \
    diffusers==0.42.1

HF_HUB_OFFLINE=1 ACCELERATE_USE_CPU=true "$work/venv/bin/python" -W ignore - <<'PYTHON'
import copy, importlib.metadata, sys
import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel

accelerator = Accelerator(mixed_precision="bf16", cpu=True)

def network():
    torch.manual_seed(0)
    return accelerator.prepare(UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 32), layers_per_block=1, cross_attention_dim=16, attention_head_dim=8,
        norm_num_groups=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")))

torch.manual_seed(1)
picture, words = torch.randn(4, 4, 8, 8), torch.randn(4, 5, 16)

def step(unet):
    """The dtypes of a convolution's output and of the prediction, and the bytes that are kept for backward."""
    inside, kept = [], {}
    hook = unet.conv_in.register_forward_hook(lambda module, given, output: inside.append(output.dtype))
    def pack(tensor):
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        prediction = unet(picture, 500, words).sample
    hook.remove()
    weights = {parameter.data_ptr() for parameter in unet.parameters()}
    return inside[0], prediction.dtype, sum(size for place, size in kept.items() if place not in weights)

def removed(unet):
    return accelerator.unwrap_model(unet, keep_fp32_wrapper=False)

def under_autocast(unet):
    removed(unet)
    with accelerator.autocast():
        return step(unet)

def after(happens):
    def run(unet):
        happens(unet)
        return step(unet)
    return run

runs = {
    "prepared": step,
    "unwrap_model(model)": after(accelerator.unwrap_model),
    "unwrap_model(a copy, False)": after(lambda unet: removed(copy.deepcopy(unet))),
    "unwrap_model(model, False)": after(removed),
    "the same, prepared again": after(lambda unet: accelerator.prepare(removed(unet))),
    "the same, under autocast()": under_autocast,
}
print("versions:", *(f"{name} {importlib.metadata.version(name)}" for name in ("accelerate", "diffusers", "torch")))
print("guess:    the model trains in bfloat16 after each of these")
print("seen:     in float32 after keep_fp32_wrapper=False, and for good")
print("output:   before a step               | convolution    | prediction     | kept for backward")
found = {name: run(network()) for name, run in runs.items()}
for name, (inside, given, kept) in found.items():
    print(f"          {name:27} | {inside!s:14} | {given!s:14} | {kept / 1024:4.0f} KiB")
half = [inside == torch.bfloat16 for inside, _, _ in found.values()]
kept = [kept for _, _, kept in found.values()]
if half != [True, True, True, False, False, True] or kept[3] < 1.3 * kept[0]:
    sys.exit("No longer so: a prepared model computes in bfloat16 after unwrap_model with keep_fp32_wrapper=False.")
PYTHON
