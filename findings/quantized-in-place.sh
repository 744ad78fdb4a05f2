#!/usr/bin/env bash
# comfy-kitchen: what is done in place to a quantised weight is forgotten, and nothing says so.
#
# Guess: QuantizedTensor is a torch.Tensor, so weight.mul_(0.5), weight += delta, weight[row] = 0 and torch.sub(..., out=weight)
#   either change it or raise.
# Seen (comfy-kitchen 0.2.31, torch 2.13.0, the eager backend, in all four layouts that quantise a plain tensor: FP8, MXFP8,
#   NVFP4, INT8): an operation that the class has no handler for is run on a dequantised copy. In place, it changes the
#   copy, which is thrown away, and gives the unchanged weight back. Of what was tried only copy_ of a plain tensor raises.
#   A line such as weight += delta runs, and a linear layer computes to the bit what it did before.
# Why it matters: ComfyUI holds the weights of quantised checkpoints (language models and diffusion models) in this class.
#   Code that merges a LoRA, scales a layer or clears a row by hand works on every other checkpoint and does nothing here.
# Instead: dequantise, change, and quantise anew (ComfyUI's model patcher does), or add the change to what the layer says.
# Source: comfy_kitchen/tensor/base.py, QuantizedTensor.__torch_dispatch__ and _dequant_and_fallback.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 comfy-kitchen==0.2.31 packaging==26.4

"$work/venv/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version
import torch
from comfy_kitchen.tensor import QuantizedTensor

LAYOUTS = ("TensorCoreFP8Layout", "TensorCoreMXFP8Layout", "TensorCoreNVFP4Layout", "TensorWiseINT8Layout")
torch.manual_seed(0)
plain, delta = torch.randn(64, 64) * 0.02, torch.ones(64, 64)
DONE = {
    "weight.mul_(2)": lambda weight: weight.mul_(2.0),
    "weight += delta": lambda weight: weight.__iadd__(delta),
    "weight.zero_()": lambda weight: weight.zero_(),
    "weight[:4] = 0": lambda weight: weight.__setitem__(slice(0, 4), 0.0),
    "torch.sub(a, b, out=weight)": lambda weight: torch.sub(plain, delta, out=weight),
    "torch._foreach_mul_([weight], 2)": lambda weight: torch._foreach_mul_([weight], 2.0),
    "weight.copy_(plain)": lambda weight: weight.copy_(plain),
}

def outcome(tensor, change):
    before = (tensor.dequantize() if isinstance(tensor, QuantizedTensor) else tensor).clone()
    try:
        change(tensor)
    except TypeError as error:
        return f"raises: {error}"
    after = tensor.dequantize() if isinstance(tensor, QuantizedTensor) else tensor
    return "unchanged" if torch.equal(before, after) else "changed"

layer = torch.nn.Linear(64, 64, bias=False)
layer.weight = torch.nn.Parameter(QuantizedTensor.from_float(plain, LAYOUTS[0]), requires_grad=False)
before = layer(torch.eye(64))
layer.weight += delta
same = torch.equal(layer(torch.eye(64)), before)

print(f"versions: comfy-kitchen {version('comfy-kitchen')}, torch {torch.__version__}")
print("guess:    an operation in place changes a quantised weight, or raises")
print("seen:     it is unchanged, without a word; copy_ alone raises")
print("output:   operation | a plain tensor | " + ", ".join(LAYOUTS))
wrong = not same
for name, change in DONE.items():
    found = [outcome(QuantizedTensor.from_float(plain.clone(), layout), change) for layout in LAYOUTS]
    usual = outcome(plain.clone() + 1, change)
    print(f"          {name:32} | {usual:9} | {', '.join(sorted(set(found)))}")
    wrong |= usual != "changed" or any(one.startswith("raises") != ("copy_" in name) or one == "changed" for one in found)
print(f"          a linear layer after weight += 1 computes the same bits: {same}")
if wrong:
    sys.exit("no longer so: an operation in place changes a quantised weight, or raises, or copy_ does not")
PYTHON
