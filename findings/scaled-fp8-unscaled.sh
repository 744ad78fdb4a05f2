#!/usr/bin/env bash
# diffusers: a Flux file in ComfyUI's scaled FP8 is loaded without its scales, and nothing says so.
#
# Guess: from_single_file reads a "fp8_scaled" file with its scales, or refuses it, or names the tensors that it left out.
# Seen (diffusers 0.42.1, torch 2.13.0): such a file holds each matrix as float8 of the range up to 448, and beside it a
#   number, X.scale_weight, that it is to be multiplied by. Flux's converter takes the keys that it knows and drops the
#   rest: the matrices are loaded as they lie, here 44,800 times too large, with no error, no warning and no log line about
#   it. Wan's converter renames what it finds: the same weights are loaded, and a warning names the scales as "not used".
# Why it matters: these files are how people with 8 to 24 GB have Flux, and from_single_file, then save_pretrained, is how one
#   makes of a file the folder that a trainer asks for. What is trained on it learns to drive noise.
# Instead: look for keys that end in .scale_weight (or .weight_scale) before loading, and multiply each weight in float32.
# Source: diffusers/loaders/single_file_utils.py, convert_flux_transformer_checkpoint_to_diffusers (returns what it popped).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==5.24.0 \
    diffusers==0.42.1 accelerate==1.15.0

cd "$work"
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import io, logging, re, sys
import diffusers, torch
from diffusers.utils import logging as log
from safetensors.torch import save_file

lines = io.StringIO()
log.disable_default_handler()
log.add_handler(logging.StreamHandler(lines))
log.set_verbosity_warning()
TRUE, SCALE = 0.01, 0.01 / 448  # each weight of a scaled matrix is 0.01, and lies in the file as 448

def flux():
    """One block of each kind, in the sizes that the converter asks for: 0.5 billion weights."""
    hidden, keys = 3072, {}
    def linear(name, out, into):
        keys[f"{name}.weight"], keys[f"{name}.bias"] = (out, into), (out,)
    linear("img_in", hidden, 64), linear("txt_in", hidden, 32), linear("final_layer.linear", 64, hidden)
    linear("final_layer.adaLN_modulation.1", 2 * hidden, hidden)
    for name, into in (("time_in", 256), ("vector_in", 24)):
        linear(f"{name}.in_layer", hidden, into), linear(f"{name}.out_layer", hidden, hidden)
    for side in ("img", "txt"):
        block = f"double_blocks.0.{side}"
        linear(f"{block}_mod.lin", 6 * hidden, hidden), linear(f"{block}_attn.qkv", 3 * hidden, hidden)
        linear(f"{block}_attn.proj", hidden, hidden), linear(f"{block}_mlp.0", 4 * hidden, hidden)
        linear(f"{block}_mlp.2", hidden, 4 * hidden)
        keys |= {f"{block}_attn.norm.{part}_norm.scale": (128,) for part in ("query", "key")}
    linear("single_blocks.0.modulation.lin", 3 * hidden, hidden), linear("single_blocks.0.linear1", 7 * hidden, hidden)
    linear("single_blocks.0.linear2", hidden, 5 * hidden)
    keys |= {f"single_blocks.0.norm.{part}_norm.scale": (128,) for part in ("query", "key")}
    config = dict(num_layers=1, num_single_layers=1, joint_attention_dim=32, pooled_projection_dim=24, guidance_embeds=False)
    return diffusers.FluxTransformer2DModel, config, keys, "transformer_blocks.0.ff.net.2.weight"

def wan():
    config = dict(num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, freq_dim=16,
                  ffn_dim=32, num_layers=1, rope_max_seq_len=32)
    names = {"condition_embedder.time_embedder.linear_1": "time_embedding.0", "condition_embedder.time_proj": "time_projection.1",
             "condition_embedder.time_embedder.linear_2": "time_embedding.2", "scale_shift_table": "modulation",
             "condition_embedder.text_embedder.linear_1": "text_embedding.0", "to_out.0": "o",
             "condition_embedder.text_embedder.linear_2": "text_embedding.2", "attn1": "self_attn", "attn2": "cross_attn",
             "to_q": "q", "to_k": "k", "to_v": "v", "ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2", "proj_out": "head.head"}
    keys = {}
    for key, value in diffusers.WanTransformer3DModel(**config).state_dict().items():
        key = "head.modulation" if key == "scale_shift_table" else key.replace("norm2", "norm3")
        keys[re.sub("|".join(map(re.escape, names)), lambda found: names[found[0]], key)] = tuple(value.shape)
    return diffusers.WanTransformer3DModel, config, keys, "blocks.0.ffn.net.2.weight"

print(f"versions: diffusers {diffusers.__version__}, torch {torch.__version__}")
print("guess:    a scaled FP8 file is read with its scales, or what is left out is named")
print("seen:     neither for Flux; for Wan what is left out is named, and left out")
print("output:   model | a weight in the file x its scale | the weight as loaded | a line names scale_weight")
said = {}
for family in (flux, wan):
    kind, config, keys, probe = family()
    tensors = {}
    for key, shape in keys.items():
        if "blocks." in key and key.endswith(".weight") and len(shape) == 2:
            tensors[key] = torch.full(shape, 448.0).to(torch.float8_e4m3fn)
            tensors[key.removesuffix("weight") + "scale_weight"] = torch.tensor([SCALE])
        else:
            tensors[key] = torch.zeros(shape, dtype=torch.bfloat16)
    tensors["scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
    save_file(tensors, "model.safetensors")
    del tensors
    with torch.device("meta"):
        kind(**config).save_config("config/transformer")
    lines.truncate(lines.seek(0))
    model = kind.from_single_file("model.safetensors", config="config", subfolder="transformer", torch_dtype=torch.bfloat16)
    weight, told = model.state_dict()[probe].float().max().item(), "scale_weight" in lines.getvalue()
    said[kind.__name__] = weight, told
    print(f"          {kind.__name__:22} | {TRUE} | {weight:g} | {told}")
    del model
if said != {"FluxTransformer2DModel": (448.0, False), "WanTransformer3DModel": (448.0, True)}:
    sys.exit("no longer so: the scales are used, or Flux's converter names what it leaves out, or Wan's does not")
PYTHON
