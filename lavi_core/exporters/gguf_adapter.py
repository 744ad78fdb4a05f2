"""An adapter as a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..files import replacing
from ..importers.dialect import GGUFHeader


def write_gguf(path: str | Path, tensors: Mapping[str, Tensor], header: GGUFHeader) -> None:
    """Whole or not at all; matrices in the dtypes that they have, but bfloat16, which NumPy has not, in float32.
    Vectors, and what the header names, are float32: that is what GGML adds and multiplies by. An OSError leaves the
    old file as it was."""
    from gguf import GGUFWriter

    with replacing(path) as temporary:
        writer = GGUFWriter(temporary, header.architecture)
        for key, value in header.keys.items():
            writer.add_uint32(key, value)
        for name, tensor in tensors.items():
            whole = tensor.ndim < 2 or name in header.float32 or tensor.dtype != torch.float16
            writer.add_tensor(name, (tensor.float() if whole else tensor).contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
