"""Fingerprints of a model and of a vocabulary: equal for two copies of one thing, whatever dtype a copy was cast to."""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .quantized.modules import quantized

SAMPLE = 1024  # values read at the start and at the middle of each matrix


def weights_fingerprint(model: nn.Module) -> str:
    """sha256 over the signs of a few values of every matrix of ``model``.

    A sign survives a cast to float16, bfloat16 or float8 (even an underflow keeps its sign bit), so a float32 and a
    half-precision copy have one print; a fine-tuned or quantised copy has another. Of weights that are kept quantised
    the sampled rows are dequantised. Neither names nor order enter it, because libraries rename and reorder modules
    between versions. Vectors are left out: norms are all positive.
    """
    plain = [_tensor_fingerprint(p.detach()) for p in model.parameters() if _is_matrix(p)]
    packed = {id(module.blocks): module for _, module in quantized(model)}  # one print of a shared matrix
    return _together([*plain, *(_slice_fingerprint(m, (m.rows, m.columns)) for m in packed.values())])


def files_fingerprint(model: nn.Module, files: Sequence[Path]) -> str | None:
    """``weights_fingerprint`` of ``model``, which may be on the meta device, once these safetensors files were loaded.

    Only the sampled slices are read. The files may hold more than the model (an LM head, a decoder), under longer names
    ("model.layers.0..." for "layers.0..."). None where they lack one of its matrices in its shape.
    """
    from safetensors import safe_open

    with ExitStack() as opened:
        slices = {}
        for path in files:
            file = opened.enter_context(safe_open(str(path), "pt"))
            slices |= {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        names = _names_in(slices.keys(), model)
        if names is None:
            return None
        shapes = {name: tuple(slices[name].get_shape()) for name in names}
        if any(shapes[name] != shape for name, shape in names.items()):
            return None
        return parts_fingerprint((slices[name], shape) for name, shape in names.items())


def parts_fingerprint(parts: Iterable[tuple[Any, tuple[int, ...]]]) -> str:
    """``weights_fingerprint`` of matrices that need not be read whole: (what gives a slice of rows, shape)."""
    return _together(_slice_fingerprint(part, shape) for part, shape in parts)


def vocabulary_fingerprint(tokenizer: Any) -> str:
    """sha256 over the whole token -> id table of a Hugging Face tokenizer."""
    table = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=True)
    return hashlib.sha256(table.encode()).hexdigest()


def join(*prints: str | None) -> str | None:
    """One print of several; None where one of them is not known."""
    known = [one for one in prints if one is not None]
    return hashlib.sha256(":".join(known).encode()).hexdigest() if len(known) == len(prints) else None


def _is_matrix(parameter: Tensor) -> bool:
    return parameter.ndim >= 2 and parameter.is_floating_point()


def _together(digests: Iterable[str]) -> str:
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


def _tensor_fingerprint(tensor: Tensor) -> str:
    flat = tensor.reshape(-1) if tensor.is_contiguous() else tensor.contiguous().reshape(-1)
    middle = flat.numel() // 2
    return _sample_fingerprint(flat[:SAMPLE], flat[middle : middle + SAMPLE], flat.numel())


def _slice_fingerprint(part: Any, shape: tuple[int, ...]) -> str:
    """``_tensor_fingerprint`` of a tensor in a file: only the rows that hold the sample are read."""
    size = math.prod(shape)
    row = max(1, size // max(1, shape[0]))

    def read(start: int) -> Tensor:
        stop = min(start + SAMPLE, size)
        first = start // row
        return part[first : -(-stop // row)].reshape(-1)[start - first * row : stop - first * row]

    return _sample_fingerprint(read(0), read(size // 2), size)


def _sample_fingerprint(start: Tensor, middle: Tensor, size: int) -> str:
    signs = torch.signbit(torch.cat([start, middle]).float()).to("cpu", torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{size}:".encode() + signs).hexdigest()


def _names_in(keys: Iterable[str], model: nn.Module) -> dict[str, tuple[int, ...]] | None:
    """Name in the files -> shape in the model, of every matrix. A shared matrix has several names, of which
    files hold one or all. None where no prefix turns the model's names into names in the files."""
    aliases: dict[int, list[str]] = defaultdict(list)
    shapes: dict[int, tuple[int, ...]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if _is_matrix(parameter):
            aliases[id(parameter)].append(name)
            shapes[id(parameter)] = tuple(parameter.shape)
    known = set(keys)
    first = next(iter(aliases.values()), [])
    prefixes = sorted({key.removesuffix(name) for key in known for name in first if f".{key}".endswith(f".{name}")})
    for prefix in prefixes:
        found = {n: next((prefix + a for a in names if prefix + a in known), None) for n, names in aliases.items()}
        if None not in found.values():
            return {name: shapes[n] for n, name in found.items() if name is not None}
    return None
