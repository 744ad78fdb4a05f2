#!/usr/bin/env bash
# transformers and BigBird: in eval mode the hidden states of a prompt depend on what the model has read before.
#
# Guess: a frozen model in eval() is a function: the same ids give the same states, today and after other prompts.
# Seen (transformers 5.24.0): a model saved with attention_type="block_sparse" (the default) that reads one short row turns
#   itself to full attention, for good: a long prompt read before and after it has other states. Its config goes on saying
#   "block_sparse"; the change is warned of once, on the short row, not on the long ones that it changes.
# Why it matters: text encoders read short and long captions in any order. States that are cached, compared or trained on
#   depend on that order, and a process that starts anew on the same prompt does not get what the last one had.
# Instead: load it with attention_type="original_full", or keep prompts at or below (5 + 2 * num_random_blocks) *
#   block_size tokens (704 by default), where both are full attention.
# Source: transformers/models/big_bird/modeling_big_bird.py, BigBirdModel.forward: set_attention_type("original_full").
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==5.24.0

HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import importlib.metadata, sys
import torch
from transformers import BigBirdConfig, BigBirdModel
from transformers.utils import logging

logging.set_verbosity_error()
torch.manual_seed(0)
model = BigBirdModel(BigBirdConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
    intermediate_size=64, block_size=16, num_random_blocks=3, max_position_embeddings=512)).eval()
for p in model.parameters():
    if p.ndim > 1: torch.nn.init.normal_(p, std=0.2)
long, short = torch.arange(400)[None] % 60 + 4, torch.arange(8)[None] + 4

@torch.no_grad()
def read(ids):
    return model(ids).last_hidden_state

first = read(long)
again = float((read(long) - first).norm() / first.norm())
read(short)
after = float((read(long) - first).norm() / first.norm())
print("versions:", *(f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "torch")))
print("guess:    400 tokens give the same states before and after 8 other tokens were read")
print("seen:     they do not; the model attends in full from then on, its config says otherwise")
print(f"output:   read twice: relative change {again:.1e}; after a short prompt: {after:.2f}")
print(f"          model.attention_type {model.attention_type}, config.attention_type {model.config.attention_type}")
if again > 1e-6 or after < 0.05 or model.config.attention_type != "block_sparse":
    sys.exit("No longer so: what BigBird reads does not depend on what it has read before, or its config tells.")
PYTHON
