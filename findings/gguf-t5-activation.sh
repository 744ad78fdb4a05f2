#!/usr/bin/env bash
# transformers: a T5 v1.1 that is read from GGUF cuts its negative gates off (ReLU) where the model bends them (GELU).
#
# Guess: from_pretrained(gguf_file=) of an unquantised T5 encoder gives the states of the model that was written.
# Seen (transformers 5.24.0, gguf 0.19.0): every T5 in GGUF is taken for a gated one, which is right for v1.1 and Flan, and the
#   config's activation stays that of T5Config, ReLU. The states are others, with no message; a UMT5 is right, since its
#   config has GELU from the start. The first T5 (t5-small, t5-large), which has no gates, has one half of its first maps left
#   as random numbers: transformers lists them as MISSING, and the model goes on.
# Why it matters: T5 v1.1 XXL is the encoder of Flux.1, SD3, PixArt and Chroma, and GGUF is how it fits into 6 to 12 GB.
#   Its pictures come out, of states that no one trained on; a bridge that is trained on such states is right with them alone.
# Instead: give the config of the model: from_pretrained(folder, gguf_file=name, config=T5Config(feed_forward_proj="gated-gelu", ...)),
#   for the first T5 its own with "relu".
# Source: transformers/modeling_gguf_pytorch_utils.py, load_gguf_checkpoint ("only for flan-t5"); llama.cpp, src/models/t5.cpp.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==5.24.0 \
  accelerate==1.15.0 gguf==0.19.0

HF_HUB_OFFLINE=1 TQDM_DISABLE=1 "$work/venv/bin/python" - "$work" <<'PYTHON'
import importlib.metadata, logging, pathlib, sys
import gguf, torch
from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

work = pathlib.Path(sys.argv[1])
said, handler = [], logging.Handler()
handler.emit = lambda record: said.append(record.getMessage())
logging.getLogger("transformers").addHandler(handler)
names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5ENCODER, 2)

def write(model, name):
    """The file that a converter writes of an encoder: two layers, width 64, four heads of 16, nothing quantised."""
    writer = gguf.GGUFWriter(str(work / f"{name}.gguf"), "t5encoder")
    for method, value in dict(name=name, vocab_size=64, block_count=2, context_length=512, embedding_length=64,
                              feed_forward_length=128, head_count=4, key_length=16, value_length=16,
                              relative_attn_buckets_count=32, layer_norm_eps=1e-6, layer_norm_rms_eps=1e-6).items():
        getattr(writer, f"add_{method}")(value)
    for key, tensor in model.state_dict().items():
        if key != "encoder.embed_tokens.weight":  # shared
            writer.add_tensor(names.get_name(key.removesuffix(".weight")) + ".weight", tensor.numpy())
    writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file(); writer.close()

def change(model, other):
    ids = torch.arange(20)[None] * 7 % 64
    with torch.no_grad():
        a, b = model(ids).last_hidden_state, other(ids).last_hidden_state
    return float((a - b).norm() / a.norm())

print("versions:", *(f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "gguf", "torch")))
print("guess:    no change of the states in any row, or an error")
print("seen:     T5 v1.1 has other states and nothing is said; the first T5 has random weights, which are listed")
print("output:   model | written with | read with | relative change of the states | with the model's config | missing named")
found = {}
for name, kind, cls, proj in (("t5-v1.1", T5Config, T5EncoderModel, "gated-gelu"), ("umt5", UMT5Config, UMT5EncoderModel, "gated-gelu"),
                              ("t5", T5Config, T5EncoderModel, "relu")):
    torch.manual_seed(0)
    model = cls(kind(vocab_size=64, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, feed_forward_proj=proj)).eval()
    for p in model.parameters():
        if p.ndim > 1: torch.nn.init.normal_(p, std=0.1)
    write(model, name)
    said.clear()
    loaded = cls.from_pretrained(work, gguf_file=f"{name}.gguf").eval()
    missing = sum("MISSING" in message for message in said)
    given = cls.from_pretrained(work, gguf_file=f"{name}.gguf", config=model.config).eval()
    found[name] = change(model, loaded), change(model, given), missing
    read = ("gated " if loaded.config.is_gated_act else "") + loaded.config.dense_act_fn
    wrote = ("gated " if model.config.is_gated_act else "") + model.config.dense_act_fn
    print(f"          {name:8} | {wrote:14} | {read:14} | {found[name][0]:.4f} | {found[name][1]:.1e} | {'yes' if missing else 'no'}")
if found["t5-v1.1"][0] < 0.05 or found["t5-v1.1"][2] or found["umt5"][0] > 1e-4 or found["t5"][0] < 0.05 or not found["t5"][2] \
        or max(given for _, given, _ in found.values()) > 1e-4:
    sys.exit("no longer so: the activation of a T5 in GGUF is read, or transformers speaks of it")
PYTHON
