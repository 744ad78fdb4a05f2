#!/usr/bin/env bash
# PEFT: an adapter with overlapping alpha_pattern entries computes something else after it was saved and loaded.
#
# Guess: the same weights and the same LoraConfig give the same output before save_pretrained and after from_pretrained.
# Seen (peft 0.21.2): the first entry that matches a module, in the order of the dict, sets its alpha. The file keeps no
#   such order: adapter_config.json is written with sorted keys, so that another entry is first after loading, and the
#   module has another strength. No error and no warning; the LoRA tensors are equal to the bit.
# Why it matters: "one alpha for every q_proj, a higher one in the first layers" is how one writes it for a language model
#   of 32 layers; the bridge was trained at one strength and is sampled at another.
# Instead: let no two entries match one module (full names, or an index in each); else give them in alphabetical order.
#   Compare the outputs before and after a round trip once. With rank_pattern the same mistake at least raises on loading.
# Source: peft/utils/other.py get_pattern_key (first match); peft/config.py PeftConfigMixin.save_pretrained (sort_keys).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==5.24.0 peft==0.21.2

HF_HUB_OFFLINE=1 "$work/venv/bin/python" -W ignore::FutureWarning - "$work/adapter" <<'PYTHON'
import copy, json, sys
import peft, torch, transformers
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from transformers import LlamaConfig, LlamaModel

folder = sys.argv[1]
torch.manual_seed(0)
base = LlamaModel(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                              num_attention_heads=4, num_key_value_heads=4)).eval()
config = LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False,
                    alpha_pattern={"q_proj": 16, "layers.0.self_attn.q_proj": 64})
trained = get_peft_model(copy.deepcopy(base), config).eval()
trained.save_pretrained(folder)
loaded = PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()

def scales(model):
    return {name.split("model.", 1)[1]: module.scaling["default"] for name, module in model.named_modules()
            if name.endswith("q_proj")}

ids = torch.arange(5, 25)[None]
with torch.no_grad():
    before, after = trained(ids).last_hidden_state, loaded(ids).last_hidden_state
change = float((after - before).norm() / before.norm())
first, second = get_peft_model_state_dict(trained), get_peft_model_state_dict(loaded)
equal = all(torch.equal(first[key], second[key]) for key in first)
print(f"versions: peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")
print("guess:    a saved and loaded adapter computes what it computed before")
print("seen:     the alpha of layers.0.self_attn.q_proj is another one, and so is the output")
print("output:   alpha_pattern given    ", config.alpha_pattern)
print("          alpha_pattern in file  ", json.load(open(f"{folder}/adapter_config.json"))["alpha_pattern"])
print("          alpha / r before saving", scales(trained))
print("          alpha / r after loading", scales(loaded))
print(f"          LoRA tensors equal to the bit: {equal}; relative change of the last hidden state: {change:.3f}")
if not equal or scales(trained) == scales(loaded) or change < 1e-3:
    sys.exit("No longer so: the adapter keeps its alphas through a round trip.")
PYTHON
