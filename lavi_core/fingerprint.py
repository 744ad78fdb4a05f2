"""Fingerprints of a model and of a vocabulary: equal for two copies of one thing, whatever dtype a copy was cast to."""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .quantized.unpacking import packed

SAMPLE = 1024  # values read at the start and at the middle of each matrix


def weights_fingerprint(model: nn.Module) -> str:
    """sha256 over the signs of a few values of every matrix of ``model``.

    A sign survives a cast to float16, bfloat16 or float8 (even an underflow keeps its sign bit), so a float32 and a
    half-precision copy have one print; a fine-tuned or quantised copy has another. Of weights that are kept quantised
    the sampled rows are dequantised. Neither names nor order enter it, because libraries rename and reorder modules
    between versions. Vectors are left out: norms are all positive.
    """
    plain = [_tensor_fingerprint(p.detach()) for p in model.parameters() if _is_matrix(p)]
    return _together([*plain, *(_slice_fingerprint(part, part.shape) for _, part in packed(model))])


def files_fingerprint(model: nn.Module, files: Sequence[Path]) -> str | None:
    """``weights_fingerprint`` of ``model``, which may be on the meta device, once these safetensors files were loaded.

    Only the sampled slices are read. The files may hold more than the model (an LM head, a decoder), under longer names
    ("model.layers.0..." for "layers.0..."). None where they lack one of its matrices in its shape.
    """
    with _slices_of(model, files, _is_matrix) as parts:
        return None if parts is None else parts_fingerprint(parts)


def files_magnitudes(model: nn.Module, files: Sequence[Path]) -> list[float] | None:
    """``magnitudes`` of ``model`` as ``files_fingerprint`` has its fingerprint; None where the files lack a weight."""
    with _slices_of(model, files, _is_weight) as parts:
        return None if parts is None else parts_magnitudes(parts)


def parts_fingerprint(parts: Iterable[tuple[Any, tuple[int, ...]]]) -> str:
    """``weights_fingerprint`` of matrices that need not be read whole: (what gives a slice of rows, shape)."""
    return _together(_slice_fingerprint(part, shape) for part, shape in parts)


def vocabulary_fingerprint(tokenizer: Any) -> str:
    """sha256 over the whole token -> id table of a Hugging Face tokenizer."""
    table = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=True)
    return hashlib.sha256(table.encode()).hexdigest()


def magnitudes(model: nn.Module) -> list[float]:
    """The root mean squares of sampled values of every weight of ``model``, vectors included, in ascending order.

    What a fingerprint of signs does not see: weights that were scaled. A quantised copy has them within some percent.
    """
    plain = [p.detach() for p in model.parameters() if _is_weight(p)]
    found = [_magnitude(_samples_of(p)) for p in plain]
    return sorted(found + [_magnitude(_samples_in(part, part.shape)) for _, part in packed(model)])


def parts_magnitudes(parts: Iterable[tuple[Any, tuple[int, ...]]]) -> list[float]:
    """``magnitudes`` of weights that need not be read whole, see ``parts_fingerprint``."""
    return sorted(_magnitude(_samples_in(part, shape)) for part, shape in parts)


def join(*prints: str | None) -> str | None:
    """One print of several; None where one of them is not known."""
    known = [one for one in prints if one is not None]
    return hashlib.sha256(":".join(known).encode()).hexdigest() if len(known) == len(prints) else None


def _is_matrix(parameter: Tensor) -> bool:
    return parameter.ndim >= 2 and parameter.is_floating_point()


def _is_weight(parameter: Tensor) -> bool:
    return parameter.ndim >= 1 and parameter.is_floating_point()


def _together(digests: Iterable[str]) -> str:
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


def _tensor_fingerprint(tensor: Tensor) -> str:
    return _sample_fingerprint(*_samples_of(tensor), tensor.numel())


def _slice_fingerprint(part: Any, shape: tuple[int, ...]) -> str:
    """``_tensor_fingerprint`` of a tensor in a file."""
    return _sample_fingerprint(*_samples_in(part, shape), math.prod(shape))


def _samples_of(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Some values at the start and in the middle."""
    flat = tensor.reshape(-1) if tensor.is_contiguous() else tensor.contiguous().reshape(-1)
    middle = flat.numel() // 2
    return flat[:SAMPLE], flat[middle : middle + SAMPLE]


def _samples_in(part: Any, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The same of a tensor in a file: only the rows that hold the sample are read."""
    size = math.prod(shape)
    row = max(1, size // max(1, shape[0]))

    def read(start: int) -> Tensor:
        stop = min(start + SAMPLE, size)
        first = start // row
        return part[first : -(-stop // row)].reshape(-1)[start - first * row : stop - first * row]

    return read(0), read(size // 2)


def _magnitude(samples: tuple[Tensor, Tensor]) -> float:
    """Root mean square, to four digits."""
    values = torch.cat([part.float() for part in samples])
    return float(f"{float(values.square().mean().sqrt()):.4g}")


def _sample_fingerprint(start: Tensor, middle: Tensor, size: int) -> str:
    signs = torch.signbit(torch.cat([start, middle]).float()).to("cpu", torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{size}:".encode() + signs).hexdigest()


@contextmanager
def _slices_of(
    model: nn.Module, files: Sequence[Path], wanted: Callable[[Tensor], bool]
) -> Iterator[list[tuple[Any, tuple[int, ...]]] | None]:
    """(slices of a tensor in the files, its shape in the model) of each of the model's weights that is ``wanted``."""
    from safetensors import safe_open

    with ExitStack() as opened:
        slices = {}
        for path in files:
            file = opened.enter_context(safe_open(str(path), "pt"))
            slices |= {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        names = _names_in(slices.keys(), model, wanted)
        fit = names is not None and all(tuple(slices[n].get_shape()) == shape for n, shape in names.items())
        yield [(slices[name], shape) for name, shape in names.items()] if names is not None and fit else None


def _names_in(
    keys: Iterable[str], model: nn.Module, wanted: Callable[[Tensor], bool]
) -> dict[str, tuple[int, ...]] | None:
    """Name in the files -> shape in the model, of every weight that is ``wanted``. A shared one has several names, of
    which files hold one or all. None where no prefix turns the model's names into names in the files."""
    aliases: dict[int, list[str]] = defaultdict(list)
    shapes: dict[int, tuple[int, ...]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if wanted(parameter):
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
