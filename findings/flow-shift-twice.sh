#!/usr/bin/env bash
# diffusers: the shift of a flow scheduler is applied twice, to the sigmas that one gives it and to the last of its own.
#
# Guess: FlowMatchEulerDiscreteScheduler(shift=3) shifts the noise levels once: set_timesteps(sigmas=scheduler.sigmas) samples
#   at those, and with as many steps as it was trained for it samples at the levels of training.
# Seen (diffusers 0.42.1): a fresh scheduler's sigmas are shifted already. set_timesteps takes its lowest level from them and
#   shifts again: the last level before 0 is 0.0089, where the lowest of training is 0.0030; with 1,000 steps of 1,000 only
#   the first is where it was. Sigmas that are given are taken as not shifted: 0.5 becomes 0.75. Heun and LCM for flows
#   begin alike. The other way of having flows, use_flow_sigmas and flow_shift in UniPC, ends at other levels again.
# Why it matters: a distilled model's published sigmas, given to a scheduler with a shift in its config, are not those that
#   are run. And whoever compares with another program finds a difference in the picture and looks for it in the network:
#   ComfyUI 0.33.0's "normal" ends at 0.0089 as well, its "simple" takes its levels from those of training.
# Instead: give sigmas before the shift, sigma / (shift - (shift - 1) * sigma), and print scheduler.sigmas after set_timesteps.
# Source: diffusers/schedulers/scheduling_flow_match_euler_discrete.py, __init__ (self.sigma_min) and set_timesteps.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==5.24.0 diffusers==0.42.1

HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import sys
import diffusers, torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, FlowMatchLCMScheduler

SHIFT = 3.0
def shifted(sigma):
    return SHIFT * sigma / (1 + (SHIFT - 1) * sigma)

print(f"versions: diffusers {diffusers.__version__}, torch {torch.__version__}")
print("guess:    the shift is applied once")
print("seen:     twice to the lowest level, and to sigmas that are given")
print("output:   scheduler | lowest level of training | last before 0, of 20 steps | of 1,000 steps")
lowest, wrong = shifted(torch.tensor(0.001)).item(), False
for kind in (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, FlowMatchLCMScheduler):
    scheduler, last = kind(shift=SHIFT), []
    trained = scheduler.sigmas.min().item()
    for steps in (20, 1000):
        if steps == 1000 and kind is FlowMatchLCMScheduler:
            break  # has at most 50
        scheduler.set_timesteps(steps)
        last.append(scheduler.sigmas[scheduler.sigmas > 0].min().item())
    print(f"          {kind.__name__:32} | {trained:.4f} | " + " | ".join(f"{one:.4f}" for one in last))
    wrong |= abs(trained - lowest) > 1e-5 or any(abs(one - shifted(lowest)) > 1e-4 for one in last)
scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
trained = scheduler.sigmas.clone()
scheduler.set_timesteps(1000)
same = int((scheduler.sigmas[:1000] - trained).abs().lt(1e-6).sum())
print(f"          of 1,000 levels of training, 1,000 steps are run at: {same}")
given = [1.0, 0.75, 0.5, 0.25]
scheduler.set_timesteps(sigmas=given)
run = scheduler.sigmas[:-1].tolist()
back = [sigma / (SHIFT - (SHIFT - 1) * sigma) for sigma in given]
scheduler.set_timesteps(sigmas=back)
again = scheduler.sigmas[:-1].tolist()
print(f"          sigmas given: {given}, run: {[round(one, 4) for one in run]}")
print(f"          given before the shift: {[round(one, 4) for one in back]}, run: {[round(one, 4) for one in again]}")
wrong |= same > 5 or max(abs(one - shifted(sigma)) for one, sigma in zip(run, given)) > 1e-5
wrong |= max(abs(one - sigma) for one, sigma in zip(again, given)) > 1e-5
if wrong:
    sys.exit("no longer so: the shift is applied once")
PYTHON
