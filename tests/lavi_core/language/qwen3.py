"""A tiny Qwen3, whose tokenizer here ends a text with </s>."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lavi_bridge.tests.lavi_core.conftest import write_tokenizer


def write_qwen3(folder: Path, width: int = 24) -> Path:
    """A Hugging Face folder of the model without its head."""
    import transformers

    vocabulary = len(write_tokenizer(folder, bos=False))
    sizes: dict[str, Any] = {"hidden_size": width, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    sizes |= {"num_attention_heads": 3, "num_key_value_heads": 1, "vocab_size": vocabulary}
    torch.manual_seed(0)
    transformers.Qwen3Model(transformers.Qwen3Config(**sizes)).save_pretrained(folder)
    return folder
