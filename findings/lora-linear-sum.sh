#!/usr/bin/env bash
# peft: the "linear" combination of two LoRAs is not their weighted sum: the average of a LoRA with itself is twice as strong.
#
# Guess: add_weighted_adapter(["a", "b"], [0.5, 0.5], "c", combination_type="linear") is 0.5 a + 0.5 b, the average.
# Seen (peft 0.21.2): each factor is combined, A with A and B with B, with the square roots of the weights, and their product
#   has B of one times A of the other in it. Of a LoRA and itself, halves give 2 times the LoRA; of two that have nothing in
#   common the result is off by about as much as their sum is large. "cat" and "svd" (of the rank of both together) are the
#   sum to rounding, and so is what a network computes with both adapters active.
# Why it matters: "linear" keeps the rank, and so is what one takes to average two steps of a training, or to merge two
#   trainings of one language model into one file. The first comes out nearly twice as strong, the second as another LoRA.
# Instead: combination_type="cat", or "svd" with the rank that one wants, which is the best of that rank.
# Source: peft/tuners/lora/model.py, _generalized_task_arithmetic_weighted_adapter.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==5.24.0 peft==0.21.2

HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import sys
import peft, torch
from peft import LoraConfig, get_peft_model

RANK = 4

def pair(same):
    """A linear map with two LoRAs, with factors drawn apart or, same, the first twice."""
    torch.manual_seed(0)
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["0"])
    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(64, 64, bias=False)), config, adapter_name="first")
    model.add_adapter("second", config)
    layer = model.base_model.model[0]
    with torch.no_grad():
        for factor in (layer.lora_A, layer.lora_B):
            factor["first"].weight.normal_()
            factor["second"].weight.copy_(factor["first"].weight if same else torch.randn_like(factor["first"].weight))
    return model, layer

def combined(same, weights, kind):
    """(how far the combination is from the weighted sum, its size), relative to the size of the sum."""
    model, layer = pair(same)
    rank = {"svd_rank": 2 * RANK} if kind == "svd" else {}
    with torch.no_grad():
        model.add_weighted_adapter(["first", "second"], weights, "both", combination_type=kind, **rank)
        total = sum(w * layer.get_delta_weight(name) for w, name in zip(weights, ("first", "second")))
        found = layer.get_delta_weight("both")
        return ((found - total).norm() / total.norm()).item(), (found.norm() / total.norm()).item()

print(f"versions: peft {peft.__version__}, torch {torch.__version__}")
print("guess:    each kind of combination is the weighted sum of the two, as far as its rank allows")
print("seen:     linear is not: twice the sum of a LoRA and itself, another matrix where the two differ")
print("output:   weights | two LoRAs, off by: linear | cat | svd | one LoRA twice, times as strong: linear | cat | svd")
wrong = False
for weights in ([1.0, 1.0], [0.5, 0.5], [0.8, 0.2]):
    off = [combined(False, weights, kind)[0] for kind in ("linear", "cat", "svd")]
    times = [combined(True, weights, kind)[1] for kind in ("linear", "cat", "svd")]
    print(f"          {weights!s:10} | {off[0]:.2f} | {off[1]:.0e} | {off[2]:.0e} | " + " | ".join(f"{t:.2f}" for t in times))
    wrong |= off[0] < 0.5 or max(off[1:]) > 1e-4 or times[0] < 1.7 or max(abs(t - 1) for t in times[1:]) > 1e-4
if wrong:
    sys.exit("no longer so: linear is the weighted sum, or cat and svd are not")
PYTHON
