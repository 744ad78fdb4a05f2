"""Prints of a model and of a vocabulary: equal for two copies of the same thing, whatever dtype a copy was cast to."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn

SAMPLE = 1024  # values read at the start and at the middle of each matrix


def weights_print(model: nn.Module) -> str:
    """sha256 over the signs of a few values of every matrix of ``model``.

    A sign survives a cast to float16, bfloat16 or float8 (even an underflow keeps its sign bit), so a float32 and a
    half-precision copy have one print; a fine-tuned or quantised copy has another. Neither names nor order enter it,
    because libraries rename and reorder modules between versions. Vectors are left out: norms are all positive.
    """
    digests = sorted(_tensor_print(p.detach()) for p in model.parameters() if p.ndim >= 2 and p.is_floating_point())
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def vocabulary_print(tokenizer: Any) -> str:
    """sha256 over the whole token -> id table of a Hugging Face tokenizer."""
    table = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=True)
    return hashlib.sha256(table.encode()).hexdigest()


def join(*prints: str) -> str:
    """One print of several."""
    return hashlib.sha256(":".join(prints).encode()).hexdigest()


def _tensor_print(tensor: Tensor) -> str:
    flat = tensor.reshape(-1) if tensor.is_contiguous() else tensor.contiguous().reshape(-1)
    middle = flat.numel() // 2
    sample = torch.cat([flat[:SAMPLE], flat[middle : middle + SAMPLE]])
    signs = torch.signbit(sample.float()).to("cpu", torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{flat.numel()}:".encode() + signs).hexdigest()
