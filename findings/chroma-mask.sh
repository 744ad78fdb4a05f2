#!/usr/bin/env bash
# diffusers: with gradient checkpointing Chroma's single blocks attend to the padding that its mask leaves out.
#
# Guess: gradient checkpointing trades time for memory; what a model computes stays the same to the last digits.
# Seen (diffusers 0.42.1): ChromaTransformer2DModel gives its attention_mask to all blocks, but where gradients are on and
#   checkpointing is enabled the single blocks are called without it. A short prompt in a batch then depends on what its
#   padding holds, the loss differs, and nothing is said. Flux, whose blocks are the same, takes no mask.
# Why it matters: Chroma is trained to hear its real tokens and one of padding; a LoRA trained on 24 GB, where checkpointing
#   is needed, learns with all of the padding attended and is sampled without it.
# Instead: give each prompt by itself, cut to its real tokens and the one behind them, while checkpointing is on.
# Source: diffusers/models/transformers/transformer_chroma.py, forward, "for index_block, block in
#   enumerate(self.single_transformer_blocks)": the arguments of _gradient_checkpointing_func.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==5.24.0 diffusers==0.42.1

HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import sys
import diffusers, torch

def model(double, single):
    torch.manual_seed(0)
    return diffusers.ChromaTransformer2DModel(
        in_channels=16, num_layers=double, num_single_layers=single, attention_head_dim=32, num_attention_heads=2,
        joint_attention_dim=24, axes_dims_rope=(8, 12, 12), approximator_num_channels=64, approximator_hidden_dim=32,
        approximator_layers=1).train()

REAL, TOKENS, CELLS = 5, 12, 16
picture, text = torch.randn(1, CELLS, 16), torch.randn(1, TOKENS, 24)
mask = torch.ones(1, TOKENS + CELLS, dtype=torch.bool)
mask[:, REAL:TOKENS] = False
other = text.clone()
other[:, REAL:] = torch.randn(1, TOKENS - REAL, 24)

def moved(double, single, checkpointing):
    """How far the prediction moves when what the masked tokens hold is changed, relative to its size."""
    network = model(double, single)
    if checkpointing: network.enable_gradient_checkpointing()
    def call(context):
        return network(hidden_states=picture, timestep=torch.tensor([0.5]), encoder_hidden_states=context,
                       txt_ids=torch.zeros(TOKENS, 3), img_ids=torch.zeros(CELLS, 3), attention_mask=mask).sample
    one, two = call(text), call(other)
    return ((one - two).abs().max() / one.abs().max()).item()

print(f"versions: diffusers {diffusers.__version__}, torch {torch.__version__}")
print("guess:    what masked tokens hold moves nothing, with checkpointing as without")
print("seen:     with checkpointing it moves the prediction of a model that has single blocks")
print("output:   blocks | moved without checkpointing | with checkpointing")
found = {name: [moved(*blocks, on) for on in (False, True)] for name, blocks in
         {"joint blocks alone": (2, 0), "joint and single blocks": (2, 2)}.items()}
for name, (off, on) in found.items():
    print(f"          {name:24} | {off:.1e} | {on:.1e}")
(joint, joint_on), (both, both_on) = found.values()
if max(joint, joint_on, both) > 1e-5 or both_on < 1e-4:
    sys.exit("No longer so: Chroma's mask is kept under gradient checkpointing, or is not kept without it.")
PYTHON
