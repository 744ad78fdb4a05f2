"""GGUF files of tiny models, written by the gguf package as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp interleaves the two halves of a rotated head."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_llama(path: Path, folder: Path, kind: str = "F32") -> Path:
    """The tiny Llama of a folder, its matrices in this format of blocks."""
    import gguf
    import transformers

    state = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    row = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name(path.stem)
    _sizes(writer)
    _tokenizer(writer, folder)

    def put(name: str, weight: np.ndarray) -> None:
        if weight.ndim == 1 or kind == "F32":
            writer.add_tensor(name, weight)
        else:
            writer.add_tensor(name, gguf.quants.quantize(weight, row), raw_dtype=row)

    put("token_embd.weight", state["model.embed_tokens.weight"].numpy())
    put("output_norm.weight", state["model.norm.weight"].numpy())
    put("output.weight", state["lm_head.weight"].numpy())
    for i in range(3):
        for ours, theirs in NAMES.items():
            weight = state[f"model.layers.{i}.{ours}.weight"].numpy()
            heads = {"attn_q": 4, "attn_k": 2}.get(theirs)
            put(f"blk.{i}.{theirs}.weight", permute(weight, heads) if heads else weight)
    return _closed(writer, path)


def _sizes(writer: Any) -> None:
    writer.add_block_count(3)
    writer.add_context_length(130)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)


def _tokenizer(writer: Any, folder: Path) -> None:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    raw = json.loads((folder / "tokenizer.json").read_text())["model"]
    writer.add_vocab_size(len(tokenizer))
    writer.add_tokenizer_model("gpt2")
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if t.startswith("<") and t.endswith(">") else 1 for t in vocabulary])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in raw["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(3)


def _closed(writer: Any, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
