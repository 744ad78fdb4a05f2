#!/usr/bin/env bash
# torch: Adafactor trains a LoRA a thousand times slower than its learning rate says, since a LoRA begins at zero.
#
# Guess: torch.optim.Adafactor(lr=1e-3) moves a weight by about 1e-3 a step, as AdamW does, with less memory.
# Seen (torch 2.13.0, transformers 5.24.0): a step is the learning rate times the weight's own size (root mean square), not below
#   1e-3. The matrix of a LoRA that begins at zero has no size, so its first steps are of 1e-6, and it takes about a
#   thousand of them until they grow at all: of what AdamW has learnt after 200 steps, it has then learnt nothing, and the same
#   after 4000. Nor is the learning rate ever above 1 / sqrt(step). transformers' Adafactor as it is made with
#   relative_step=False does the same; scale_parameter=False turns it off there, and torch's has no such switch.
# Why it matters: Adafactor is what a 6 to 24 GB GPU is given to train on. The zero of a LoRA is the same as a bridge's, and
#   as that of every adapter whose last map begins at zero. The loss moves a little, from the other matrix, and says nothing.
# Instead: transformers.optimization.Adafactor(relative_step=False, scale_parameter=False, warmup_init=False), or AdamW in 8 bits.
# Source: torch/optim/_adafactor.py, _single_tensor_adafactor (rho_t, alpha); Shazeer and Stern, arXiv 1804.04235, algorithm 4.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==5.24.0

HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import sys
import torch, transformers
from transformers.optimization import Adafactor

WIDTH, RANK, STEPS, RATE, LATER = 256, 16, 200, 1e-3, 20

def trained(optimizer, steps=STEPS):
    """(size of the first step of the matrix that begins at zero, share of the loss left after the steps)."""
    torch.manual_seed(0)
    inputs = torch.randn(512, WIDTH)
    wanted = inputs @ (torch.randn(WIDTH, 8) @ torch.randn(8, WIDTH) / 16)
    down = torch.nn.Parameter(torch.randn(RANK, WIDTH) / 16)
    up = torch.nn.Parameter(torch.zeros(WIDTH, RANK))
    optimizer = optimizer([down, up])
    losses, first = [], 0.0
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (inputs @ down.T @ up.T - wanted).square().mean()
        loss.backward()
        optimizer.step()
        first = first or up.detach().square().mean().sqrt().item()
        losses.append(loss.item())
    return first, losses[-1] / losses[0]

ROWS = {
    "torch AdamW": lambda p: torch.optim.AdamW(p, lr=RATE, weight_decay=0),
    "torch Adafactor": lambda p: torch.optim.Adafactor(p, lr=RATE),
    "transformers Adafactor": lambda p: Adafactor(p, lr=RATE, relative_step=False),
    "transformers Adafactor, scale_parameter=False": lambda p: Adafactor(p, lr=RATE, relative_step=False, scale_parameter=False),
}
print(f"versions: torch {torch.__version__}, transformers {transformers.__version__}")
print(f"guess:    the first step is about the learning rate of {RATE} in all rows")
print("seen:     a thousandth of it in the second and third, and nearly all of the loss is left")
print(f"output:   optimizer | first step | of the loss left after {STEPS} steps")
found = {name: trained(make) for name, make in ROWS.items()}
for name, (first, rest) in found.items():
    print(f"          {name:45} | {first:.1e} | {rest:.3f}")
late = trained(ROWS["torch Adafactor"], LATER * STEPS)[1]
print(f"          torch Adafactor, of the loss left after {LATER * STEPS} steps: {late:.3f}")
slow = [found["torch Adafactor"], found["transformers Adafactor"]]
fast = [found["torch AdamW"], found["transformers Adafactor, scale_parameter=False"]]
if any(first > 2e-6 or rest < 0.99 for first, rest in slow) or any(first < 5e-4 or rest > 0.3 for first, rest in fast) \
        or not 0.5 * found["torch AdamW"][1] < late < 2 * found["torch AdamW"][1]:
    sys.exit("no longer so: Adafactor's first step from zero is not a thousandth of its learning rate")
PYTHON
