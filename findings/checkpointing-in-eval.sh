#!/usr/bin/env bash
# transformers and diffusers: gradient checkpointing that is switched on does nothing in a language model in eval().
#
# Guess: once enabled, checkpointing saves memory wherever gradients flow, in a language model as in a vision model.
# Seen (transformers 5.24.0, diffusers 0.42.1): transformers checkpoints a layer only while layer.training is True, diffusers
#   wherever gradients are on. After eval() the U-Net still runs each block twice (forward, and again in backward), the
#   language model once: every activation is kept, while is_activation_checkpointing still says True.
# Why it matters: a trainer puts the frozen language model into eval() to silence its dropout and trains a LoRA in it. The
#   vision model fits, the language model does not, and the setting seems to be on for both.
# Instead: keep train() and load with the config's dropout rates at zero; or, after eval(), set training = True on the
#   checkpointed layers alone, not on their children, as the last line of the output does (a layer that calls
#   functional dropout itself, as BART's do, needs the rates at zero all the same).
# Source: transformers/modeling_layers.py GradientCheckpointingLayer; diffusers/models/unets/unet_2d_blocks.py,
#   "if torch.is_grad_enabled() and self.gradient_checkpointing".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==5.24.0 diffusers==0.42.1

HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import sys
import diffusers, torch, transformers
from transformers.modeling_layers import GradientCheckpointingLayer

transformers.logging.set_verbosity_error()
SIZE = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
ids = torch.arange(5, 25)[None]
def heard(model): return model(input_ids=ids).last_hidden_state
MODELS = {
    "Llama": (lambda: transformers.LlamaModel(transformers.LlamaConfig(**SIZE)), "layers.1.mlp", heard),
    "T5 encoder": (lambda: transformers.T5EncoderModel(transformers.T5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_heads=4, num_layers=2)), "encoder.block.1.layer.1", heard),
    "BERT": (lambda: transformers.BertModel(transformers.BertConfig(**SIZE)), "encoder.layer.1.output", heard),
    "U-Net": (lambda: diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 32), layers_per_block=1, norm_num_groups=8, cross_attention_dim=32,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=8), "down_blocks.1.resnets.0",
        lambda model: model(torch.randn(1, 4, 8, 8), 5, torch.randn(1, 20, 32)).sample),
}

def runs(name, mode):
    """How often a layer starts in one forward and one backward pass: 2 is recomputed, 1 is kept in memory."""
    make, place, call = MODELS[name]
    torch.manual_seed(0)
    model, count = make(), [0]
    if name == "U-Net": model.enable_gradient_checkpointing()
    else: model.activation_checkpointing_enable()
    model.train(mode == "train")
    if mode == "eval, layers alone in training":
        for module in model.modules():
            if isinstance(module, GradientCheckpointingLayer): module.training = True
    model.get_submodule(place).register_forward_pre_hook(lambda *_: count.__setitem__(0, count[0] + 1))
    call(model).square().mean().backward()
    on = model.is_gradient_checkpointing if name == "U-Net" else model.is_activation_checkpointing
    return count[0], on

print(f"versions: transformers {transformers.__version__}, diffusers {diffusers.__version__}, torch {torch.__version__}")
print("guess:    each layer runs twice, in train() and in eval(), in both libraries")
print("seen:     in eval() the layers of the language models run once, the U-Net's twice; all say that checkpointing is on")
print("output:   model | runs in train() | runs in eval() | says it is on in eval()")
seen = {name: (runs(name, "train"), runs(name, "eval")) for name in MODELS}
for name, (train, evaluation) in seen.items():
    print(f"          {name:10} | {train[0]} | {evaluation[0]} | {evaluation[1]}")
mode = "eval, layers alone in training"
print(f"          {mode}:", {name: runs(name, mode)[0] for name in MODELS if name != "U-Net"})
language = [seen[name] for name in MODELS if name != "U-Net"]
if any((train[0], evaluation) != (2, (1, True)) for train, evaluation in language) or seen["U-Net"][1][0] != 2:
    sys.exit("No longer so: the two libraries treat checkpointing in eval() alike, or the switch tells the truth.")
PYTHON
