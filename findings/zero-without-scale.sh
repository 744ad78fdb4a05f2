#!/usr/bin/env bash
# comfy-kitchen: a matrix of zeros becomes NaN in FP8 and in NVFP4; in MXFP8 and INT8 it stays zero.
#
# Guess: zero is the one number that every format holds, so zeros are zeros after quantising, in each of them.
# Seen (comfy-kitchen 0.2.31, torch 2.13.0, the eager backend, scale not given): the scale of a whole tensor is its largest
#   magnitude over the format's, and of zeros that is 0. FP8 divides by it, and all is NaN; NVFP4 minds blocks of zeros, but
#   divides by the scale of the whole first, and all is NaN. MXFP8 and INT8 give zeros. One value that is not zero (1e-6
#   here) is enough for all others to be zeros. The GPU backends were not run.
# Why it matters: zeros are common where a bridge is: a prompt that was zeroed out, a pooled vector that nobody gives, layers
#   that begin at zero (LoRA's second factor, ControlNet's). ComfyUI 0.33.0 quantises activations too by this rule where a
#   layer computes in NVFP4 and its file has no scale for its input (comfy/quant_ops.py, TensorCoreNVFP4Layout).
# Instead: ask for the largest magnitude before, and give scale=1 where it is 0.
# Source: comfy_kitchen/tensor/fp8.py and nvfp4.py, quantize, "torch.amax(tensor.abs()) /"; backends/eager/quantization.py.
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

LAYOUTS = {"TensorCoreFP8Layout": True, "TensorCoreNVFP4Layout": True, "TensorCoreMXFP8Layout": False,
           "TensorWiseINT8Layout": False}
zeros = torch.zeros(64, 64, dtype=torch.bfloat16)
almost = zeros.clone()
almost[0, 0] = 1e-6

def kept(tensor, layout, **scale):
    found = QuantizedTensor.from_float(tensor.clone(), layout, **scale).dequantize()[1:]
    return "NaN" if found.isnan().all() else "zeros" if not found.any() else "other"

print(f"versions: comfy-kitchen {version('comfy-kitchen')}, torch {torch.__version__}")
print("guess:    a matrix of zeros is zeros in each format")
print("seen:     NaN in FP8 and NVFP4, where the whole matrix is zero")
print("output:   layout | zeros | zeros but for one value | zeros, scale = 1 given")
wrong = False
for layout, to_nan in LAYOUTS.items():
    given = kept(zeros, layout, scale=1.0) if to_nan else "-"
    found = kept(zeros, layout), kept(almost, layout)
    print(f"          {layout:22} | {found[0]:5} | {found[1]:5} | {given}")
    wrong |= found != ("NaN" if to_nan else "zeros", "zeros") or given not in ("-", "zeros")
if wrong:
    sys.exit("no longer so: zeros are zeros in FP8 and NVFP4 too, or are not in MXFP8 and INT8")
PYTHON
