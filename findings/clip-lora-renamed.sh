#!/usr/bin/env bash
# transformers: a LoRA of SD's and SDXL's first text encoder has other names since transformers 5, and who knows the old
# ones alone does not find it.
#
# Guess: a LoRA that diffusers saves has the same keys whichever transformers it was trained under.
# Seen (transformers 5.24.0 beside 4.57.6): CLIPTextModel has lost its inner text_model; CLIPTextModelWithProjection,
#   SDXL's second encoder, has kept it. save_lora_weights and convert_state_dict_to_kohya write the path as it is:
#   text_encoder.encoder.layers... and lora_te1_encoder_layers..., for the second encoder still with text_model between.
#   diffusers 0.35.2 over transformers 4.57.6 finds nothing of the first encoder in such a file and ends in an
#   IndexError that names neither key nor file. The other way round, an old file under transformers 5, all is loaded.
# Why it matters: ComfyUI (0.3.64 and 0.33.0, comfy/lora.py, model_lora_keys_clip) knows both encoders by names with
#   text_model alone; it logs "lora key not loaded" for the others and draws without them. A LoRA of SD 1.5 with a
#   trained text encoder loses all of that half there, one of SDXL the first encoder's.
# Instead: put text_model back before a file is given away: text_encoder.encoder. -> text_encoder.text_model.encoder.,
#   lora_te1_encoder_ -> lora_te1_text_model_encoder_ (SD 1.5: lora_te_). transformers 5 reads these too.
# Source: transformers/models/clip/modeling_clip.py, CLIPTextModel; diffusers/loaders/lora_base.py, pack_weights, adds
#   the prefix alone; diffusers/utils/state_dict_utils.py, convert_state_dict_to_kohya, replaces the prefix alone.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
new() {
    python3 -m venv "$work/$1"
    "$work/$1/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 "${@:2}"
}
new now transformers==5.24.0 diffusers==0.42.1 peft==0.21.2
new before transformers==4.57.6 diffusers==0.35.2 peft==0.17.1

cat > "$work/common.py" <<'PYTHON'
import importlib.metadata, sys
from pathlib import Path
import torch
from diffusers import StableDiffusionXLPipeline
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

folder = Path(sys.argv[1])
FILE = "pytorch_lora_weights.safetensors"
WORDS = torch.tensor([[52, 1, 2, 3, 53]])

def encoders():
    """Both of SDXL's kinds, tiny, the same weights whatever their names are."""
    config = CLIPTextConfig(
        vocab_size=54, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, projection_dim=16, bos_token_id=52, eos_token_id=53)
    made = {}
    for name, kind in (("text_encoder", CLIPTextModel), ("text_encoder_2", CLIPTextModelWithProjection)):
        model = kind(config).eval()
        for path, weight in model.state_dict().items():
            if weight.is_floating_point():
                generator = torch.Generator().manual_seed(sum(map(ord, path.removeprefix("text_model."))))
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
        made[name] = model
    return made

@torch.no_grad()
def hear(model):
    return model(WORDS, output_hidden_states=True).hidden_states[-1]

def save(to):
    loras = {}
    for name, model in encoders().items():
        torch.manual_seed(1)
        inject_adapter_in_model(
            LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj"], init_lora_weights=False), model)
        loras[f"{name}_lora_layers"] = get_peft_model_state_dict(model)
    StableDiffusionXLPipeline.save_lora_weights(to, **loras)
    return loras

def load(path):
    """How far each encoder's states are from those without the file."""
    state, alphas = StableDiffusionXLPipeline.lora_state_dict(str(path.parent), weight_name=path.name)[:2]
    changes = []
    for name, model in encoders().items():
        without = hear(model)
        own = {key: weight for key, weight in state.items() if key.split(".")[0] == name}
        StableDiffusionXLPipeline.load_lora_into_text_encoder(
            own, network_alphas=alphas, text_encoder=model, prefix=name)
        changes.append(float((hear(model) - without).norm() / without.norm()))
    return changes

def versions():
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "diffusers", "peft"))
PYTHON
run() { HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error DIFFUSERS_VERBOSITY=error PYTHONPATH="$work" \
    "$work/$1/bin/python" -W ignore - "$work" 2> "$work/$1.log" || { cat "$work/$1.log" >&2; return 1; }; }

run before <<'PYTHON'
from common import *
save(folder / "old")
print("versions:", versions(), "(before)")
PYTHON
run now <<'PYTHON'
from common import *
from diffusers.utils import convert_state_dict_to_kohya
loras = save(folder / "new")
print("         ", versions(), "(now)")
print("guess:    a LoRA of both of SDXL's encoders is heard in both, whoever wrote it")
print("seen:     written now, the part of the first encoder has names that were not known before")
for when in ("old", "new"):
    keys = sorted(load_file(folder / when / FILE))
    print(f"output:   {when}", *(next(key for key in keys if key.startswith(f"{name}.")) for name in encoders()))
first = {f"text_encoder.{key}": weight for key, weight in loras["text_encoder_lora_layers"].items()}
print("          new, for kohya", next(iter(convert_state_dict_to_kohya(first))))
mended = {key.replace("text_encoder.encoder.", "text_encoder.text_model.encoder."): weight
          for key, weight in load_file(folder / "new" / FILE).items()}
(folder / "mended").mkdir()
save_file(mended, folder / "mended" / FILE)
found = {when: load(folder / when / FILE) for when in ("old", "new", "mended")}
print("          read now: change of the states of the first, of the second encoder")
for when, changes in found.items():
    print(f"          {when:6} |", *(f"{c:.3f}" for c in changes))
if min(map(min, found.values())) < 1e-3:
    sys.exit("No longer so: transformers 5 reads both names.")
if any(".text_model." in key for key in load_file(folder / "new" / FILE) if key.startswith("text_encoder.")):
    sys.exit("No longer so: a LoRA of the first encoder has text_model in its names again.")
PYTHON
run before <<'PYTHON'
from common import *
found = {when: load(folder / when / FILE) for when in ("old", "mended")}
print("          read before: the same")
for when, changes in found.items():
    print(f"          {when:6} |", *(f"{c:.3f}" for c in changes))
try:
    print("          new    |", *(f"{c:.3f}" for c in load(folder / "new" / FILE)))
    sys.exit("No longer so: a LoRA written under transformers 5 is read before it.")
except IndexError as error:
    print("          new    | IndexError:", error)
if min(map(min, found.values())) < 1e-3:
    sys.exit("No longer so: the old names are read before transformers 5.")
PYTHON
