#!/usr/bin/env bash
# transformers: to(bfloat16) changes a model that is in bfloat16 already: what it says of a long prompt is another thing.
#
# Guess: model.to(torch.bfloat16) of weights that are all in bfloat16 changes nothing; from_pretrained(dtype=bfloat16) and a
#   model that is loaded first and cast then are one model, to the bit.
# Seen (transformers 5.24.0): the frequencies of rotary positions (inv_freq) are a float32 buffer that no file has, which
#   dtype= leaves alone and to() rounds. Weights and model.dtype are the same before and after, no word is said, and .float()
#   does not bring it back. Angles are off by the position times the rounding: by 0.2 radians at token 512. Llama, Qwen3 and
#   Gemma-2 then say other things the further on a token stands: at tokens 480 to 512 here, four to eight times what the
#   rounding of all weights to bfloat16 does (attention sharpened, since in small random models hardly any looks at positions).
# Why it matters: diffusers' examples/dreambooth/train_dreambooth_lora_{lumina2,sana,qwen_image,z_image}.py (read at 77fa954,
#   81bd689, ec58fbe and f8b95ff) load the text encoder and cast it by to(dtype=...), Qwen-Image's after it was loaded in that
#   dtype; from_pretrained(torch_dtype=...) of a pipeline hands the dtype on to the loading. A LoRA, or a bridge, that was
#   trained on states of the one is used with those of the other, and long captions are the usual ones for these models.
# Instead: name the dtype when loading and move by to(device) alone; or put inv_freq back from rope_init_fn after a cast.
# Source: transformers/models/llama/modeling_llama.py LlamaRotaryEmbedding (register_buffer(..., persistent=False); forward
#   calls inv_freq.float(), which is too late); torch.nn.Module.to casts buffers as it does parameters.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==5.24.0

HF_HUB_OFFLINE=1 "$work/venv/bin/python" - "$work" <<'PYTHON'
import sys
import torch, transformers as t

t.logging.set_verbosity_error()
t.logging.disable_progress_bar()
BF16, PARTS = torch.bfloat16, (slice(0, 32), slice(224, 256), slice(480, 512))
SIZE = dict(vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, head_dim=64, initializer_range=0.2)
MODELS = (("Llama", t.LlamaModel, t.LlamaConfig), ("Qwen3", t.Qwen3Model, t.Qwen3Config),
          ("Gemma-2", t.Gemma2Model, t.Gemma2Config))
torch.manual_seed(0)
ids = torch.randint(0, 512, (1, 512))

@torch.no_grad()
def says(model):
    """The last states in float32, so that nothing but weights and tables tells two models apart."""
    return model.eval().float()(ids).last_hidden_state[0]

def off(states, reference):
    return [float((states[p] - reference[p]).norm() / reference[p].norm()) for p in PARTS]

print(f"versions: transformers {t.__version__}, torch {torch.__version__}")
print("guess:    a cast to the dtype that a model has already changes nothing")
print("seen:     the rotary frequencies are rounded, and what is said differs more with each token")
print("output:   model | weights equal | change by the cast at tokens 0-32, 224-256, 480-512 | by rounded weights at 480-512")
problems = []
for name, cls, config in MODELS:
    torch.manual_seed(0)
    cls(config(**SIZE)).save_pretrained(sys.argv[1] + "/model")
    load = lambda dtype: cls.from_pretrained(sys.argv[1] + "/model", dtype=dtype)
    plain, cast = load(BF16), load(BF16).to(BF16)
    same = all(torch.equal(a, b) for a, b in zip(plain.parameters(), cast.parameters()))
    kept, rounded = plain.rotary_emb.inv_freq.dtype, cast.rotary_emb.inv_freq.dtype
    typed = plain.dtype == cast.dtype == BF16
    exact, heard = says(load(torch.float32)), says(plain)
    change, own = off(says(cast), heard), off(heard, exact)
    print(f"          {name:8}| {same} | " + ", ".join(f"{x:.3f}" for x in change) + f" | {own[-1]:.3f}")
    if not (same and typed):
        problems.append(f"{name}: the weights are no longer the same")
    if (kept, rounded) != (torch.float32, BF16):
        problems.append(f"{name}: inv_freq is {kept} as loaded and {rounded} after the cast")
    if not change[0] < change[1] < change[2] or change[2] < 2 * own[-1]:
        problems.append(f"{name}: the change by the cast no longer grows with the position above that of rounded weights")
if problems:
    sys.exit("the behaviour is no longer what this script says: " + "; ".join(problems))
PYTHON
