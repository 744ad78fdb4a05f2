#!/usr/bin/env bash
# diffusers: add_noise of bfloat16 latents noises the first timesteps by other amounts, or not at all.
#
# Guess: latents in bfloat16 are noised as those in float32, but for the rounding of the result (0.4 %).
# Seen (diffusers 0.42.1, on the CPU): alphas_cumprod itself is cast to the latents' dtype before 1 - a is taken. Near 1
#   bfloat16 knows steps of 1/256, and SD's a begins at 0.99915: at timesteps 0 and 1 no noise is added at all, at 2 it
#   is 23 % too much, at 10 10 % too little, beyond 100 within 1 %. float16 is 7 % off at the first two, then within
#   3 %. Signal and noise no longer add up to variance 1. get_velocity, the target of v-prediction, takes the share of
#   the picture in it from the same numbers; the schedulers of flows and EulerDiscreteScheduler, which keep sigmas, do
#   not.
# Why it matters: training scripts keep latents in the mixed precision's dtype (diffusers' own examples do: the VAE is
#   cast to weight_dtype, and so are its latents). Timesteps 0 and 1 then teach a network to see noise where none is,
#   with an epsilon target of variance 1; whoever weighs the loss by SNR (Min-SNR, debiased) takes its SNR from the
#   exact table, not from what was added.
# Instead: noise in float32 and cast what the network gets, as this project's trainer does.
# Source: diffusers/schedulers/scheduling_ddpm.py, add_noise: alphas_cumprod = self.alphas_cumprod.to(dtype=
#   original_samples.dtype), and get_velocity; scheduling_ddim.py and others have the same lines.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 diffusers==0.42.1

HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import importlib.metadata, sys
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

SD = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
TIMES = (0, 1, 2, 5, 10, 30, 100, 500, 999)
torch.manual_seed(0)
noise, nothing = torch.randn(1, 4, 64, 64), torch.zeros(1, 4, 64, 64)

def added(scheduler, t, dtype, what="add_noise"):
    """How much noise is in latents of zeros, or of the picture in a velocity without noise, against float32."""
    at = scheduler.timesteps[-1 - t : len(scheduler.timesteps) - t] if what == "euler" else torch.tensor([t])
    if what == "get_velocity":
        got, wanted = (scheduler.get_velocity(noise.to(d), nothing.to(d), at).float() for d in (dtype, torch.float32))
    else:
        got, wanted = (scheduler.add_noise(nothing.to(d), noise.to(d), at).float() for d in (dtype, torch.float32))
    return float(got.std() / wanted.std()) - 1

ddpm, ddim, euler = DDPMScheduler(**SD), DDIMScheduler(**SD), EulerDiscreteScheduler(**SD)
euler.set_timesteps(1000)
print("versions:", *(f"{name} {importlib.metadata.version(name)}" for name in ("diffusers", "torch")))
print("guess:    as much noise in bfloat16 as in float32, within 0.4 %")
print("seen:     other amounts at the first timesteps, none at two of them")
print("output:   noise added, against float32")
print("          timestep        " + "".join(f"{t:>8}" for t in TIMES))
rows = {
    "DDPM, bfloat16": [added(ddpm, t, torch.bfloat16) for t in TIMES],
    "DDIM, bfloat16": [added(ddim, t, torch.bfloat16) for t in TIMES],
    "its velocity": [added(ddpm, t, torch.bfloat16, "get_velocity") for t in TIMES],
    "DDPM, float16": [added(ddpm, t, torch.float16) for t in TIMES],
    "Euler, bfloat16": [added(euler, t, torch.bfloat16, "euler") for t in TIMES],
}
for name, row in rows.items():
    print(f"          {name:16}" + "".join(f"{100 * gap:>7.1f}%" for gap in row))
flow = FlowMatchEulerDiscreteScheduler()
shares = flow.timesteps[[0, 500, 990, 999]]
whole, half = (flow.scale_noise(nothing.to(d), shares[-1:], noise.to(d)).float().std() for d in (torch.float32, torch.bfloat16))
print(f"          a flow's last    {100 * float(half / whole - 1):.1f}%")
odd = rows["DDPM, bfloat16"]
if not (odd[0] == odd[1] == -1 and odd[2] > 0.15 and odd[4] < -0.05 and max(map(abs, rows["Euler, bfloat16"])) < 0.01):
    sys.exit("No longer so: bfloat16 latents are noised as float32 ones.")
PYTHON
