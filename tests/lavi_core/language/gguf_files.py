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

    model = transformers.AutoModel.from_pretrained(folder)
    state, config = model.state_dict(), model.config
    row = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name(path.stem)
    _sizes(writer, config)
    _tokenizer(writer, folder)

    def put(name: str, weight: np.ndarray) -> None:
        if weight.ndim == 1 or kind == "F32":
            writer.add_tensor(name, weight)
        else:
            writer.add_tensor(name, gguf.quants.quantize(weight, row), raw_dtype=row)

    put("token_embd.weight", state["embed_tokens.weight"].numpy())
    put("output_norm.weight", state["norm.weight"].numpy())
    put("output.weight", state["embed_tokens.weight"].numpy())
    for i in range(config.num_hidden_layers):
        for ours, theirs in NAMES.items():
            weight = state[f"layers.{i}.{ours}.weight"].numpy()
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(theirs)
            put(f"blk.{i}.{theirs}.weight", permute(weight, heads) if heads else weight)
    return _closed(writer, path)


def write_t5(path: Path, model: Any) -> Path:
    """The encoder of a T5 of version 1.1 (transformers' T5EncoderModel), its matrices in Q8_0; no vocabulary to speak
    of."""
    import gguf

    config, row = model.config, gguf.GGMLQuantizationType.Q8_0
    writer = gguf.GGUFWriter(str(path), "t5encoder")
    writer.add_name(path.stem)
    writer.add_block_count(config.num_layers)
    writer.add_context_length(512)
    writer.add_embedding_length(config.d_model)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.num_heads)
    writer.add_key_length(config.d_kv)
    writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)
    writer.add_relative_attn_buckets_count(config.relative_attention_num_buckets)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("t5")
    writer.add_token_list([f"t{i}" for i in range(config.vocab_size)])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5ENCODER, config.num_layers)
    for name, tensor in model.state_dict().items():
        values, target = tensor.numpy(), f"{names.get_name(name.removesuffix('.weight'))}.weight"
        if name == "encoder.embed_tokens.weight":
            continue
        if values.ndim == 1 or "relative" in name:
            writer.add_tensor(target, values)
        else:
            writer.add_tensor(target, gguf.quants.quantize(values, row), raw_dtype=row)
    return _closed(writer, path)


def _sizes(writer: Any, config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)


def _tokenizer(writer: Any, folder: Path) -> None:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    raw = json.loads((folder / "tokenizer.json").read_text())["model"]
    writer.add_vocab_size(len(tokenizer))
    writer.add_tokenizer_model("gpt2")
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    vocabulary = ["<|endoftext|>" if token == "<unk>" else token for token in vocabulary]  # transformers 5 adds it else
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if t.startswith("<") and t.endswith(">") else 1 for t in vocabulary])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in raw["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(3)


def write_own_names(path: Path, folder: Path) -> Path:
    """The model of a folder by transformers' names of it with its head, matrices in F16, as pig_clip is."""
    import gguf
    import transformers

    writer = gguf.GGUFWriter(str(path), "pig")
    for name, weight in transformers.AutoModel.from_pretrained(folder).state_dict().items():
        writer.add_tensor(f"model.{name}", weight.numpy().astype(np.float16 if weight.ndim > 1 else np.float32))
    return _closed(writer, path)


def _closed(writer: Any, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
