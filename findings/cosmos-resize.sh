#!/usr/bin/env bash
# diffusers: without torchvision Cosmos-Predict2's network (Anima's too) is built, loaded and saved, and ends in a NameError
#   at its first call.
#
# Guess: a class whose optional dependency is missing is a dummy that names it when it is made, as diffusers' others are.
# Seen (diffusers 0.42.1): the module imports torchvision only where it is there and asks for nothing else; forward, of a
#   network with concat_padding_mask (the default, Cosmos-Predict2's and Anima's), resizes the mask with a name that was never
#   bound. The class exists, from_pretrained and save_pretrained work, so a trainer fails after its models are loaded. A mask
#   of the latents' own size does not help: it is resized all the same.
# Why it matters: torchvision has to be the build of one torch build; beside a torch for CPUs the wheel of the package index
#   does not load, so machines without it are common where such a network is prepared or tested.
# Instead: install the torchvision of the same torch, or bind the module's name to anything that resizes a mask of zeros.
# Source: diffusers/models/transformers/transformer_cosmos.py, "if is_torchvision_available()" and forward,
#   "transforms.functional.resize".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==5.24.0 diffusers==0.42.1 accelerate==1.15.0

HF_HUB_OFFLINE=1 WORK="$work" "$work/venv/bin/python" - <<'PYTHON'
import os, sys
from importlib.util import find_spec
import diffusers, torch

assert find_spec("torchvision") is None
torch.manual_seed(0)
made = diffusers.CosmosTransformer3DModel(
    in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=32, num_layers=1, text_embed_dim=16,
    adaln_lora_dim=8, extra_pos_embed_type=None)
made.save_pretrained(f"{os.environ['WORK']}/model")
network = diffusers.CosmosTransformer3DModel.from_pretrained(f"{os.environ['WORK']}/model").eval()

def call(size):
    try:
        with torch.no_grad():
            network(hidden_states=torch.randn(1, 4, 1, 8, 8), timestep=torch.tensor([0.5]),
                    encoder_hidden_states=torch.randn(1, 6, 16), padding_mask=torch.zeros(1, 1, size, size))
        return "a prediction"
    except Exception as error:
        return f"{type(error).__name__}: {error}"

print(f"versions: diffusers {diffusers.__version__}, torch {torch.__version__}, no torchvision")
print("guess:    the class is not to be made, and says that it needs torchvision")
print("seen:     it is made, saved and loaded; a call fails for a name")
print("output:   padding mask of | what came")
found = {"the picture's size": call(64), "the latents' size": call(8)}
for size, came in found.items():
    print(f"          {size:19} | {came}")
if not all(came.startswith("NameError") and "transforms" in came for came in found.values()):
    sys.exit("No longer so: a call works, or says what it lacks.")
PYTHON
