#!/usr/bin/env bash
# diffusers: a LoRA of alpha 16 and rank 4 that is saved and loaded has a quarter of its strength, or not, by who saves and reads.
#
# Guess: a LoRA that a diffusers model trained, saved by diffusers and loaded by it, computes what it did.
# Seen (diffusers 0.42.1, peft 0.21.2): neither way of saving writes alpha as a tensor. model.save_lora_adapter puts it into the
#   file's metadata, and diffusers finds it there. Pipeline.save_lora_weights, called as in most training scripts with the
#   tensors alone, writes it nowhere: it is loaded with alpha = rank. So is the first file by whatever reads tensors only, as
#   ComfyUI 0.33.0 does (comfy/lora.py asks for X.alpha), or once a tool has written it anew without its metadata.
# Why it matters: with lora_alpha = 4 x the rank the LoRA draws at a quarter of its strength in ComfyUI and at all of it in
#   diffusers, and of the second file nobody can tell what it was.
# Instead: train with lora_alpha = rank; or write X.alpha beside each pair, as kohya's files have it; or multiply lora_B by
#   alpha / rank before saving. save_lora_weights takes transformer_lora_adapter_metadata (unet_...) for diffusers' own readers.
# Source: diffusers/loaders/peft.py, save_lora_adapter; loaders/lora_base.py, _pack_dict_with_prefix and write_lora_layers.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==5.24.0 \
    diffusers==0.42.1 peft==0.21.2 accelerate==1.15.0

cd "$work"
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import sys
import diffusers, peft, torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

diffusers.utils.logging.set_verbosity_error()
FILE = "pytorch_lora_weights.safetensors"

def model():
    torch.manual_seed(0)
    return FluxTransformer2DModel(in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=24, pooled_projection_dim=24, axes_dims_rope=(4, 6, 6)).eval()

def said(network):
    generator = torch.Generator().manual_seed(1)
    def noise(*shape): return torch.randn(shape, generator=generator)
    with torch.no_grad():
        return network(hidden_states=noise(1, 16, 16), encoder_hidden_states=noise(1, 5, 24), pooled_projections=noise(1, 24),
                       timestep=torch.tensor([0.5]), img_ids=torch.zeros(16, 3), txt_ids=torch.zeros(5, 3)).sample

def scale(network):
    return next(m.scaling["default"] for m in network.modules() if hasattr(m, "scaling"))

plain, trained = model(), model()
trained.add_adapter(LoraConfig(r=4, lora_alpha=16, target_modules=["to_q", "to_k", "to_v"]))
with torch.no_grad():
    for name, weight in trained.named_parameters():
        if "lora_B" in name: weight.normal_(std=0.1)
whole = said(trained) - said(plain)
trained.save_lora_adapter("adapter")
FluxPipeline.save_lora_weights("pipeline", transformer_lora_layers=get_peft_model_state_dict(trained))
tensors = load_file(f"adapter/{FILE}")
no_alpha = not any("alpha" in key for key in tensors)
save_file(tensors, "anew.safetensors", metadata={"format": "pt"})

print(f"versions: diffusers {diffusers.__version__}, peft {peft.__version__}, torch {torch.__version__}")
print("guess:    what is loaded has alpha / rank = 4, as it was trained")
print("seen:     only where the file's metadata is written and read")
print("output:   file | alpha / rank as loaded | change of the prediction, of the trained one's")
found = {}
for name, folder, file, prefix in (("save_lora_adapter", "adapter", FILE, None), ("its tensors alone", ".", "anew.safetensors", None),
                                   ("save_lora_weights", "pipeline", FILE, "transformer")):
    loaded = model()
    loaded.load_lora_adapter(folder, weight_name=file, prefix=prefix, adapter_name="default")
    share = ((said(loaded) - said(plain)).norm() / whole.norm()).item()
    found[name] = scale(loaded)
    print(f"          {name:18} | {found[name]:g} | {share:.2f}")
print(f"          no tensor of the file is an alpha: {no_alpha}")
if found != {"save_lora_adapter": 4.0, "its tensors alone": 1.0, "save_lora_weights": 1.0} or not no_alpha:
    sys.exit("no longer so: alpha is a tensor of the file, or save_lora_weights keeps it")
PYTHON
