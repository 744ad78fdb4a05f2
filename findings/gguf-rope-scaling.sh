#!/usr/bin/env bash
# transformers and GGUF: a Llama loaded with gguf_file= loses the scaling of its rotary positions, without a word.
#
# Guess: from_pretrained(folder, gguf_file=...) gives the model that the file describes, or refuses it.
# Seen (transformers 5.24.0, gguf 0.19.0): the keys <arch>.rope.scaling.* (linear, yarn) and the tensor rope_freqs.weight
#   (how files of Llama 3.1 and newer hold their scaling) are read by nobody for a Llama; the config says "default" and
#   nothing is printed at the level of warnings. A file without scaling loads exactly, so a first test passes.
# Why it matters: the hidden states are what the vision model hears. Linear and YaRN scaling change all of them; "llama3"
#   changes a short prompt little, a long one much (2048 positions before scaling here, 8192 in Llama 3.1). A bridge
#   trained on the original folder hears another model.
# Instead: after loading compare model.config.rope_parameters with the file, and pass what is missing in a config of your
#   own (from_pretrained(..., config=...)), as the output shows for llama3; or refuse the file.
# Source: transformers/integrations/ggml.py GGUF_CONFIG_MAPPING and modeling_gguf_pytorch_utils.py load_gguf_checkpoint,
#   where only gpt-oss has its scaling read. The tensor: ggml-org/llama.cpp#8676.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==5.24.0 \
    accelerate==1.15.0 gguf==0.19.0

HF_HUB_OFFLINE=1 TQDM_DISABLE=1 "$work/venv/bin/python" - "$work" <<'PYTHON'
import importlib.metadata, logging, pathlib, sys
import gguf, torch
from transformers import LlamaConfig, LlamaModel

work = pathlib.Path(sys.argv[1])
said, handler = [], logging.Handler()
handler.emit = lambda record: said.append(record.getMessage())
logging.getLogger("transformers").addHandler(handler)
names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)

def write(model, path):
    """The file that a converter writes: two layers, width 128, two heads of 64."""
    rope, writer = model.config.rope_parameters, gguf.GGUFWriter(path, "llama")
    for method, value in dict(name="tiny", vocab_size=64, block_count=2, context_length=8192, embedding_length=128,
                              feed_forward_length=128, head_count=2, head_count_kv=2, rope_dimension_count=64,
                              layer_norm_rms_eps=model.config.rms_norm_eps, rope_freq_base=rope["rope_theta"]).items():
        getattr(writer, f"add_{method}")(value)
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"]); writer.add_rope_scaling_orig_ctx_len(2048)
    if rope["rope_type"] == "llama3":
        plain = rope["rope_theta"] ** -(torch.arange(0, 64, 2) / 64)
        writer.add_tensor("rope_freqs.weight", (plain / model.rotary_emb.inv_freq).numpy())
    for name, tensor in model.state_dict().items():
        if "q_proj" in name or "k_proj" in name:  # the format interleaves the two halves of a head
            tensor = tensor.view(2, 2, 32, 128).transpose(1, 2).reshape(128, 128)
        writer.add_tensor(names.get_name("model." + name.removesuffix(".weight")) + ".weight", tensor.numpy())
    writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file(); writer.close()

def change(model, other, length):
    ids = torch.arange(length)[None] * 7 % 64
    with torch.no_grad():
        a, b = model(ids).last_hidden_state, other(ids).last_hidden_state
    return float((a - b).norm() / a.norm())

print("versions:", *(f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "gguf", "torch")))
print("guess:    the model of the file, or an error")
print("seen:     without scaling the model is exact; with it the scaling is dropped and nothing is said")
print("output:   scaling in the file | config after loading | relative change, 77 tokens | 2000 tokens")
lost = []
for kind, more in {"default": {}, "yarn": dict(factor=4.0, original_max_position_embeddings=2048), "linear": dict(factor=4.0),
                   "llama3": dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                  original_max_position_embeddings=2048)}.items():
    torch.manual_seed(0)
    size = dict(vocab_size=64, hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)
    rope = dict(rope_type=kind, rope_theta=5e5, **more)
    model = LlamaModel(LlamaConfig(**size, max_position_embeddings=8192, rope_parameters=rope)).eval()
    for p in model.parameters():
        if p.ndim > 1: torch.nn.init.normal_(p, std=0.1)
    write(model, str(work / f"{kind}.gguf"))
    loaded = LlamaModel.from_pretrained(work, gguf_file=f"{kind}.gguf").eval()
    lost.append((change(model, loaded, 77), change(model, loaded, 2000)))
    print(f"          {kind:8} | {loaded.config.rope_parameters['rope_type']:8} | {lost[-1][0]:.4f} | {lost[-1][1]:.4f}")
given = LlamaModel.from_pretrained(work, gguf_file="llama3.gguf", config=model.config).eval()
print(f"          llama3 with a config of one's own: {change(model, given, 2000):.4f} at 2000 tokens")
print("          warnings of transformers:", said)
if max(lost[0]) > 1e-4 or any(long < 0.05 for _, long in lost[1:]) or any("rope" in message for message in said):
    sys.exit("No longer so: transformers reads the scaling of a Llama's GGUF file, or speaks of it.")
PYTHON
