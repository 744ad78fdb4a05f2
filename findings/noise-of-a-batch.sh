#!/usr/bin/env bash
# torch: the noise of a batch begins with the noise of one picture, but for some sizes.
#
# Guess: on a CPU, randn(2, ...) of a seed is what two randn(1, ...) in a row give with it, so that a picture of a batch
#   can be drawn again alone, and picture 0 of a seed does not depend on how many are drawn beside it.
# Seen (torch 2.13.0): so it is where one picture has a multiple of 16 numbers. Elsewhere the last 16 numbers of a
#   tensor are drawn anew, once for the whole tensor: picture 0 differs in its last 16, and every later one of a batch
#   has noise that has nothing to do with the noise that it has alone. A float64 tensor has another noise at every size;
#   bfloat16 and float16 have the rounded one.
# Why it matters: SD 1.5's and SDXL's latents have 4 channels, so the sizes are those whose width and height are both an
#   odd multiple of 8 pixels: 600 x 600, 1000 x 1000, 1080 x 1080. A pipeline with one generator draws a batch at once,
#   with a list of them one by one. ComfyUI (0.3.64, comfy/sample.py, prepare_noise) draws a batch at once, and one by
#   one for a batch that remembers its places, which is how "Latent From Batch" draws a picture of a batch again: at
#   these sizes it draws another one. With 16 channels (SD3, Flux) no size is of this kind.
# Instead: a generator a picture; or sizes that are multiples of 16 pixels; or float32 noise for all, picked by place.
# Source: aten/src/ATen/native/cpu/DistributionTemplates.h, normal_fill: "Recompute the last 16 values."
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6

"$work/venv/bin/python" -W ignore - <<'PYTHON'
import sys
import torch

def generator():
    return torch.Generator("cpu").manual_seed(0)

def at_once(shape, **given):
    return torch.randn(2, *shape, generator=generator(), **given)

def one_by_one(shape):
    rng = generator()
    return torch.cat([torch.randn(1, *shape, generator=rng) for _ in range(2)])

def alike(a, b):
    return float(torch.corrcoef(torch.stack([a.flatten().double(), b.flatten().double()]))[0, 1])

print("versions: torch", torch.__version__)
print("guess:    a batch has the noise of its pictures drawn one by one")
print("seen:     where a picture has no multiple of 16 numbers, the second has another noise altogether")
print("output:   picture, channels | numbers, modulo 16 | differ in picture 0 | correlation of picture 1")
sizes, dtypes = {}, {}
for side, channels in ((512, 4), (600, 4), (680, 4), (1000, 4), (1080, 4), (1080, 16)):
    shape = (channels, side // 8, side // 8)
    batch, alone = at_once(shape), one_by_one(shape)
    differ, same = int((batch[0] != alone[0]).sum()), alike(batch[1], alone[1])
    rest = batch[0].numel() % 16
    sizes[side, channels] = (rest, differ, round(same, 1))
    print(f"          {side:4} x {side:4}, {channels:2} | {rest:2} | {differ:2} | {same:5.2f}")
shape = (4, 64, 64)
for dtype in (torch.bfloat16, torch.float16, torch.float64):
    same = alike(at_once(shape, dtype=dtype), at_once(shape))
    dtypes[dtype] = round(same, 1)
    print(f"          512 x 512 in {dtype} to float32: correlation {same:5.2f}")
if any((differ == 0 and same == 1) != (rest == 0) for rest, differ, same in sizes.values()):
    sys.exit("No longer so: the sizes whose batches have a noise of their own are others.")
if list(dtypes.values()) != [1.0, 1.0, 0.0]:
    sys.exit("No longer so: which dtypes have float32's noise has changed.")
PYTHON
