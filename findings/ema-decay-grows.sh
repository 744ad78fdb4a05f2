#!/usr/bin/env bash
# diffusers: EMAModel(decay=0.9999) is no average of that decay until step 89,990, and one of another kind if given the model.
#
# Guess: with use_ema_warmup=False, the default, there is no warm-up: each step keeps `decay` of the average. The parameters
#   and the model that they are of give one average, the second way being told to be deprecated.
# Seen (diffusers 0.42.1): the decay is the smaller of `decay` and (1 + n) / (10 + n), n = steps since update_after_step. The
#   average lags behind the weights by about a tenth of the steps that were made, whichever decay is asked for: 0.999 and
#   0.9999 are one number until step 8,990, and 0.99 too until step 890. min_decay, which lifts it, is 0. Given the model, the
#   same arguments turn the warm-up on, 1 - (1 + n)^(-2/3), which reaches 0.999 after 31,622 steps; the warning is of the
#   argument's type, not of the schedule; the two are alike for some hundred steps and a factor of two apart after 8,000.
#   Before update_after_step the "average" is the weights themselves.
# Why it matters: a bridge is trained for hundreds or some thousands of steps. A sweep over decays from 0.99 up is a sweep over
#   nothing in a run of 800 steps, a recipe's 0.9999 says nothing about a short run, and a run that is cut off early has
#   averaged over fewer steps, not the same ones. It is kind to short runs: with a constant 0.9999 they would hardly move.
# Instead: choose the decay by the number of steps, below about 1 - 9 / steps where it shall matter; min_decay=decay for a
#   constant one; hand over model.parameters().
# Source: diffusers/training_utils.py, EMAModel.__init__ and get_decay.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==5.24.0 diffusers==0.42.1

HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import logging
import sys
import warnings
import diffusers, torch
from diffusers.training_utils import EMAModel

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)

def lag(steps, whole=False, **options):
    """By how many steps the average is behind a weight that moves by one at each step."""
    model = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    torch.nn.init.zeros_(model.weight)
    average = EMAModel(model if whole else model.parameters(), **options)
    for step in range(1, steps + 1):
        torch.nn.init.constant_(model.weight, float(step))
        average.step(model if whole else model.parameters())
    return steps - average.shadow_params[0].item()

def constant(steps, decay):
    value = 0.0
    for step in range(1, steps + 1):
        value = decay * value + (1 - decay) * step
    return steps - value

print(f"versions: diffusers {diffusers.__version__}, torch {torch.__version__}")
print("guess:    the lag of an average of decay d, begun at step 0, use_ema_warmup being False")
print("seen:     a tenth of the steps made, whichever decay is asked for; given the model, another schedule")
print("output:   steps | decay | guess | parameters given | with min_decay=decay | model given")
wrong = False
for steps, decay in ((800, 0.99), (800, 0.9999), (8000, 0.999), (8000, 0.9999)):
    guess, seen = constant(steps, decay), lag(steps, decay=decay)
    held, whole = lag(steps, decay=decay, min_decay=decay), lag(steps, whole=True, decay=decay)
    print(f"          {steps:5} | {decay} | {guess:6.0f} | {seen:6.0f} | {held:6.0f} | {whole:6.0f}")
    wrong |= abs(seen - steps / 10) > 2 or abs(held - guess) > 0.02 * guess or (steps == 8000 and whole > seen / 2 + 50)
same = all(lag(880, decay=0.99) == lag(880, decay=decay) for decay in (0.999, 0.9999))
print(f"          after 880 steps 0.99, 0.999 and 0.9999 give one average: {same}")
if wrong or not same:
    sys.exit("no longer so: the decay is the one that was asked for, or the two ways of asking agree")
PYTHON
