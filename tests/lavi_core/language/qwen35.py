"""A tiny Qwen3.5, whose tokenizer puts nothing around a text: of an empty prompt all is padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lavi_bridge.tests.lavi_core.conftest import write_tokenizer


def write_qwen35(folder: Path, width: int) -> Path:
    """A Hugging Face folder with the head, in which padding has states of its own."""
    import transformers
    from tokenizers.processors import TemplateProcessing

    tokenizer = write_tokenizer(folder)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A")
    tokenizer.save_pretrained(folder)
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    linear: dict[str, Any] = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    linear |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "full_attention_interval": 2}
    sizes: dict[str, Any] = heads | linear | {"hidden_size": width, "intermediate_size": 48, "num_hidden_layers": 4}
    torch.manual_seed(0)
    config = transformers.Qwen3_5TextConfig(**sizes, vocab_size=len(tokenizer), pad_token_id=0)
    model = transformers.Qwen3_5ForCausalLM(config)
    torch.nn.init.normal_(model.model.embed_tokens.weight)
    model.save_pretrained(folder)
    return folder
