#!/usr/bin/env bash
# transformers: hidden_states[-2] is the last layer but one of a Llama, and the very last layer of a Mamba.
#
# Guess: hidden_states is the embeddings, then the output of each layer; [-2] is the last layer but one; [-1] is
#   last_hidden_state. Every family returns as many entries, layers + 1, so nothing looks odd.
# Seen (transformers 5.24.0): Mamba, Mamba2, FalconMamba and RWKV return no embeddings: [0] is already layer 1, [-2] the last
#   layer before the final norm. CLIP's text model returns [-1] without the final norm (not last_hidden_state), while
#   Llama, GPT-2 and T5 return [-1] with it; [-1] of a Llama is thus not the raw output of its last layer.
# Why it matters: "the penultimate layer" is the usual ear of a vision model. A setting of -2 means another depth in
#   another family, and a mean over all entries weighs other things.
# Instead: take the layer's own output by a forward hook on the module, and apply the final norm where you want it.
# Source: the loops in transformers/models/mamba/modeling_mamba.py MambaModel.forward and models/rwkv/modeling_rwkv.py
#   RwkvModel.forward, against models/llama and models/clip.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==5.24.0

HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import sys
import torch, transformers as t

t.logging.set_verbosity_error()
SIZE = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4)
STATE = dict(vocab_size=64, hidden_size=32, num_hidden_layers=4)
MODELS = [
    (t.LlamaModel, t.LlamaConfig(**SIZE), "layers"),
    (t.GPT2Model, t.GPT2Config(vocab_size=64, n_embd=32, n_layer=4, n_head=4), "h"),
    (t.T5EncoderModel, t.T5Config(vocab_size=64, d_model=32, d_kv=8, num_heads=4, d_ff=64, num_layers=4), "encoder.block"),
    (t.BertModel, t.BertConfig(**SIZE), "encoder.layer"),
    (t.CLIPTextModel, t.CLIPTextConfig(**SIZE, eos_token_id=14), "encoder.layers"),
    (t.MambaModel, t.MambaConfig(**STATE), "layers"),
    (t.Mamba2Model, t.Mamba2Config(**STATE, num_heads=8, head_dim=8, n_groups=2, state_size=8), "layers"),
    (t.FalconMambaModel, t.FalconMambaConfig(**STATE), "layers"),
    (t.RwkvModel, t.RwkvConfig(**STATE), "blocks"),
]
ids = torch.arange(5, 15)[None]

def entries(cls, config, place):
    """What each entry of hidden_states is, known by hooks on the layers; and whether the last is last_hidden_state."""
    torch.manual_seed(0)
    model, known = cls(config).eval(), []
    for p in model.parameters():
        if p.ndim > 1: torch.nn.init.normal_(p, std=0.2)
    first = lambda out: (out[0] if isinstance(out, tuple) else out).clone()
    layers = model.get_submodule(place)
    layers[0].register_forward_pre_hook(lambda m, args, kw: known.append(("embeddings", first(args or (kw["hidden_states"],)))),
                                        with_kwargs=True)
    for i, layer in enumerate(layers, 1):
        layer.register_forward_hook(lambda m, args, out, i=i: known.append((f"layer {i}", first(out))))
    with torch.no_grad():
        out = model(input_ids=ids, output_hidden_states=True)
    name = lambda h: next((n for n, k in known if torch.allclose(h, k, atol=1e-6)), "final norm")
    return [name(h) for h in out.hidden_states], torch.equal(out.hidden_states[-1], out.last_hidden_state)

print(f"versions: transformers {t.__version__}, torch {torch.__version__}")
print("guess:    [0] embeddings, [-2] layer 3 of 4, [-1] last_hidden_state, in every family")
print("seen:     [-2] is layer 4 of 4 in the recurrent families, which return no embeddings; CLIP's [-1] lacks the final norm")
print("output:   model | entries | [0] | [-2] | [-1] | [-1] is last_hidden_state")
seen = {}
for cls, config, place in MODELS:
    names, same = seen[cls.__name__] = entries(cls, config, place)
    print(f"          {cls.__name__:16} | {len(names)} | {names[0]:10} | {names[-2]} | {names[-1]:10} | {same}")
recurrent = ("MambaModel", "Mamba2Model", "FalconMambaModel", "RwkvModel")
if (any(seen[n][0][-2] != "layer 4" or seen[n][0][0] != "layer 1" for n in recurrent) or seen["LlamaModel"][0][-2] != "layer 3"
        or seen["CLIPTextModel"][1] or not seen["LlamaModel"][1]):
    sys.exit("No longer so: hidden_states is counted alike in these families.")
PYTHON
