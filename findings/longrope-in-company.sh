#!/usr/bin/env bash
# transformers and LongRoPE: a prompt's hidden states depend on the longest prompt beside it, padding and mask as they should be.
#
# Guess: padded on the left, masked, with position ids that count its own tokens, a prompt has the states it has alone; so
#   rows of a batch can be encoded together, cached and drawn with one by one.
# Seen (transformers 5.24.0): once another row of the batch is longer than original_max_position_embeddings, all rows turn
#   by the long factors. Alone the same padded row is exact; in company it is another prompt, and nothing is said.
# Why it matters: Phi-3 and Phi-4-mini files say "longrope". A text encoder is trained in batches and heard one prompt at
#   a time: a bridge hears other states than it was taught with, though each shape, mask and position is right.
# Instead: keep a batch's length at or below original_max_position_embeddings, or pad every prompt to one fixed length, on
#   the right, in training and afterwards.
# Source: transformers/modeling_rope_utils.py, dynamic_rope_update: the length is torch.max(position_ids) + 1, over the batch.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==5.24.0

HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import importlib.metadata, sys
import torch
from transformers import Phi3Config, Phi3Model
from transformers.utils import logging

logging.set_verbosity_error()
torch.manual_seed(0)
rope = dict(rope_type="longrope", rope_theta=1e4, factor=4.0, original_max_position_embeddings=64,
            short_factor=[1.0] * 16, long_factor=[4.0] * 16)
model = Phi3Model(Phi3Config(vocab_size=64, hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2, intermediate_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    max_position_embeddings=256, original_max_position_embeddings=64, rope_parameters=rope)).eval()
for p in model.parameters():
    if p.ndim > 1: torch.nn.init.normal_(p, std=0.2)

def states(company):
    """Of a prompt of 10 tokens, padded on the left to 100, beside one of this many tokens (0: alone). [10 D]"""
    ids = torch.zeros(2 if company else 1, 100, dtype=torch.long)
    ids[0, -10:] = torch.arange(10) + 4
    if company: ids[1, -company:] = torch.arange(company) % 60 + 4
    mask = (ids != 0).long()
    with torch.no_grad():
        return model(ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).last_hidden_state[0, -10:]

with torch.no_grad():
    bare = model(torch.arange(10)[None] + 4).last_hidden_state[0]
change = {company: float((states(company) - bare).norm() / bare.norm()) for company in (0, 64, 65, 100)}
print("versions:", *(f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "torch")))
print("guess:    the states of the 10 tokens are those they have without padding, whatever stands beside them")
print("seen:     they change as soon as the prompt beside them is longer than original_max_position_embeddings (64)")
for company, by in change.items():
    print(f"output:   {'alone, padded to 100' if not company else f'beside a prompt of {company} tokens':30} relative change {by:.1e}")
if max(change[0], change[64]) > 1e-4 or min(change[65], change[100]) < 0.05:
    sys.exit("No longer so: the states of a prompt do not depend on the length of another one.")
PYTHON
