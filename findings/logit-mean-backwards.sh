#!/usr/bin/env bash
# diffusers: SD3's logit_mean moves training to the other end of the noise than in the paper; sigma_sqrt trains on a hundredth of the levels.
#
# Guess: compute_density_for_timestep_sampling("logit_normal", logit_mean=m) draws the noise levels of the SD3 paper (arXiv
#   2403.03206, where the level t is the sigmoid of a normal number with mean m, and t = 1 is noise alone): m > 0 is more
#   noise. compute_loss_weighting_for_sd3("sigma_sqrt") weighs by a root of sigma.
# Seen (diffusers 0.42.1): what is drawn is a place in scheduler.timesteps, as all of the library's training scripts use it,
#   and these run from noise down to the picture. With m = 1 half of the levels lie below 0.27, where the paper's lie above
#   0.73. "sigma_sqrt" is sigma to the power of -2: of even levels the lowest hundredth has 94 % of the weight, the lowest
#   tenth 99 %, and the loss hardly says what becomes of the others.
# Why it matters: settings are copied from the paper, which names m. A run with them learns fine detail where the large shapes,
#   which the text decides, were meant, or the other way round, and nothing in it says so.
# Instead: logit_mean = -m, or the drawn number itself as sigma; "none" or "cosmap" for the weights. (loss.timesteps =
#   "logit_normal" of this project has m = 0, which is the same in both directions.)
# Source: diffusers/training_utils.py, compute_density_for_timestep_sampling and compute_loss_weighting_for_sd3;
#   examples/dreambooth/train_dreambooth_lora_sd3.py: indices = (u * num_train_timesteps).long(), timesteps[indices].
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==5.24.0 diffusers==0.42.1

HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import sys

import diffusers, torch
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3

scheduler = diffusers.FlowMatchEulerDiscreteScheduler()  # sigma = timestep / 1000
count = scheduler.config.num_train_timesteps

def median(mean):
    """Of the noise levels that a training script draws."""
    torch.manual_seed(0)
    drawn = compute_density_for_timestep_sampling("logit_normal", 100_000, logit_mean=mean, logit_std=1.0)
    places = (drawn * count).long().clamp(max=count - 1)
    return scheduler.sigmas[places].median().item()

print(f"versions: diffusers {diffusers.__version__}, torch {torch.__version__}")
print("guess:    the median level is the sigmoid of logit_mean; sigma_sqrt weighs levels mildly")
print("seen:     it is one minus that; sigma_sqrt weighs almost the lowest levels alone")
wrong = []
for mean in (-1.0, 0.5, 1.0):
    found, paper = median(mean), torch.sigmoid(torch.tensor(mean)).item()
    print(f"output:   logit_mean {mean:4}: median level {found:.2f}, the paper's {paper:.2f}")
    if abs(found - (1 - paper)) > 0.01:
        wrong.append(f"logit_mean {mean}")
levels = scheduler.sigmas[:count].sort().values
weights = compute_loss_weighting_for_sd3("sigma_sqrt", levels)
shares = [(weights[: count // part].sum() / weights.sum()).item() for part in (100, 10)]
print(f"output:   sigma_sqrt: the lowest hundredth of {count} levels has {shares[0]:.0%} of the weight, the lowest tenth {shares[1]:.0%}")
if not (0.9 < shares[0] < 0.98 and shares[1] > 0.98):
    wrong.append("sigma_sqrt")
sys.exit(f"diffusers no longer draws or weighs noise levels so: {', '.join(wrong)}." if wrong else None)
PYTHON
