#!/usr/bin/env bash
# transformers: where the mask leaves a token nothing to attend to, its states depend on the attention implementation.
#
# Guess: "eager" and "sdpa" compute the same; what a mask leaves out is heard nowhere.
# Seen (transformers 5.24.0, torch 2.13.0, on the CPU): so it is for real tokens. A query all of whose keys are masked
#   is given zeros by sdpa (a boolean mask; NaN before torch 2.5), and under eager the plain mean of all values, masked
#   ones and later ones included (all scores are the lowest float, and softmax makes that even). Such queries are: the
#   empty prompt of a tokenizer that adds no special token (Qwen); in causal models also padding on the left of any
#   prompt, and padding on the right beyond a sliding window (Gemma 3). Nothing is warned of. T5 masks alike in both.
# Why it matters: the unconditional side of guidance is the empty prompt, at every step of every picture, and a vision
#   model without a mask (SD, SDXL) hears left padding as it hears words. sdpa is the default; eager is what one loads
#   to see attention maps, and how other programs mask: ComfyUI 0.33.0's own Qwen 2.5 agrees with eager to 3e-7.
# Instead: leave one token of padding unmasked in a prompt without tokens, and give the vision model the mask; where it
#   takes none, pad on the right and no further than a sliding window. A bridge that was trained with such rows wants
#   the attention implementation of its training.
# Source: transformers/masking_utils.py, sdpa_mask (boolean) and eager_mask (torch.finfo(dtype).min); torch's
#   scaled_dot_product_attention, zeros since pytorch/pytorch#133882.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==5.24.0

HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$work/venv/bin/python" - <<'PYTHON'
import importlib.metadata, sys
import torch
from transformers import AutoConfig, AutoModel

SIZES = dict(vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
MODELS = {
    "qwen3": dict(num_key_value_heads=2, head_dim=16),
    "llama": dict(num_key_value_heads=2),
    "gemma3_text": dict(num_key_value_heads=2, head_dim=16, sliding_window=4,
                        layer_types=["sliding_attention", "full_attention"]),
    "modernbert": {},
}
LENGTH = 16
right, left, empty = range(3)
ids = torch.zeros(3, LENGTH, dtype=torch.long)
ids[right, :3] = ids[left, -3:] = torch.tensor([4, 5, 6])
mask = (ids != 0).long()
one = mask.clone()
one[empty, 0] = 1

@torch.no_grad()
def states(kind, attention, mask):
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(kind, **SIZES, **MODELS[kind], pad_token_id=None),
                                  attn_implementation=attention).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return model(ids, attention_mask=mask).last_hidden_state

def apart(kind, mask):
    eager, sdpa = (states(kind, attention, mask) for attention in ("eager", "sdpa"))
    def of(row, places):
        return float((eager[row, places] - sdpa[row, places]).norm() / sdpa[row, places].norm())
    return {"real": max(of(right, slice(0, 3)), of(left, slice(-3, None))), "empty": of(empty, slice(None)),
            "left": of(left, slice(0, -3)), "right": of(right, slice(3, None))}

print("versions:", *(f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "torch")))
print("guess:    the same states under eager and sdpa, but for rounding")
print("seen:     other ones where the mask leaves nothing to attend to")
print("output:   relative distance     real tokens | empty prompt | left padding | right padding | empty, one unmasked")
found, cured = {}, {}
for kind in MODELS:
    by = found[kind] = apart(kind, mask)
    cured[kind] = apart(kind, one)["empty"]
    print(f"          {kind:20} {by['real']:12.1e} | {by['empty']:12.1e} | {by['left']:12.1e} | {by['right']:13.1e} |"
          f" {cured[kind]:.1e}")
causal = [by for kind, by in found.items() if kind != "modernbert"]
exact = [by["real"] for by in found.values()] + [cured[kind] for kind in MODELS if kind != "gemma3_text"]
if max(exact) > 1e-4 or min(by["empty"] for by in found.values()) < 0.1 or min(by["left"] for by in causal) < 0.1 or (
    found["gemma3_text"]["right"] < 0.1
):
    sys.exit("No longer so: eager and sdpa give the same states to tokens that may attend to nothing.")
PYTHON
