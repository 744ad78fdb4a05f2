#!/usr/bin/env bash
# diffusers: a fast solver's add_noise adds the noise of the opposite end of the schedule before set_timesteps, and the least there is after it.
#
# Guess: add_noise(latents, noise, t) is that of DDPM in every scheduler of the same betas: it is what training calls.
# Seen (diffusers 0.42.1): DPM-Solver++ (multistep and singlestep), UniPC and DEIS look a timestep up in their list of steps
#   and take the noise level at the same place. As they are made or loaded, the steps run down and the levels up: timestep 10
#   of 1000 has a share of noise of 1.0 and timestep 990 of 0.04. With prediction of a flow the shares are not even between 0
#   and 1. After set_timesteps(20), as once a validation picture was drawn, a timestep that is not one of the 20 has the level
#   of the last of them. DDPM, DDIM, PNDM and SA-Solver are right in both states; Euler and Heun raise an IndexError.
# Why it matters: DPM-Solver++ is the scheduler that lies in the folders of PixArt and Sana. A training that reads the folder's
#   scheduler teaches the network to see pictures where it is told that there is noise. The loss falls, and nothing is said.
# Instead: DDPMScheduler.from_config(scheduler.config) for noise, or alphas_cumprod themselves; for a flow t/1000 itself. A
#   scheduler that draws is one of its own.
# Source: diffusers/schedulers/scheduling_dpmsolver_multistep.py, __init__ (sigmas, timesteps), index_for_timestep, add_noise.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==5.24.0 diffusers==0.42.1

HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import sys
import diffusers, torch

BETAS = {"beta_start": 0.0001, "beta_end": 0.02}  # PixArt's
TIMESTEPS = (10, 310, 500, 990)

def shares(scheduler):
    """How much of the noise is in what add_noise gives, at each of TIMESTEPS."""
    clean, noise = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    return [scheduler.add_noise(clean, noise, torch.tensor([t])).item() for t in TIMESTEPS]

def told(found):
    return " ".join(f"{share:8.3f}" for share in found)

right = shares(diffusers.DDPMScheduler(**BETAS))
print(f"versions: diffusers {diffusers.__version__}, torch {torch.__version__}")
print("guess:    every row is the first")
print("seen:     the solvers are the first row backwards as they are made, and at their last level after set_timesteps(20)")
print(f"output:   share of noise at timesteps {', '.join(map(str, TIMESTEPS))}")
print(f"          {'DDPM':42} {told(right)}")
wrong = []
for name in ("DDIM", "SASolver", "DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "DEISMultistep"):
    scheduler = getattr(diffusers, name + "Scheduler")(**BETAS)
    made = shares(scheduler)
    scheduler.set_timesteps(20)
    stepped = shares(scheduler)
    print(f"          {name + ', as made':42} {told(made)}")
    print(f"          {name + ', after set_timesteps':42} {told(stepped)}")
    if name in ("DDIM", "SASolver"):
        as_before = max(abs(a - b) for a, b in zip(right * 2, made + stepped)) < 1e-3
    else:
        as_before = made[0] > 0.99 and made[-1] < 0.1 and stepped[0] > 3 * right[0] and stepped[0] == stepped[1] == stepped[-1] < 0.3
    if not as_before:
        wrong.append(name)
flow = diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", **BETAS)
made = shares(flow)
print(f"          {'DPMSolverMultistep, a flow':42} {told(made)}   (a flow's: 0.010 0.310 0.500 0.990)")
if not made[0] > 1:
    wrong.append("the flow")
if wrong:
    sys.exit(f"no longer so: {', '.join(wrong)}")
PYTHON
