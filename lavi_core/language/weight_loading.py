"""Weights from files into a model built without them, tensor by tensor: each is held once, in its final format."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..quantized.formats import PLAIN
from ..quantized.modules import put_blocks
from ..quantized.storage import Storage, quantize
from .tensor_files import StoredTensor

Progress = Callable[[int, int], None]  # bytes done, bytes in all; may raise to stop

_NUMBER = re.compile(r"(?<![^.])\d+(?=\.)")


def _pattern(name: str) -> str:
    return _NUMBER.sub("#", name)


def _heads(name: str) -> list[str]:
    """Of layers.0.experts.3.up.weight: layers.0 and layers.0.experts.3."""
    return [name[: match.end()] for match in _NUMBER.finditer(name)]


class Empty(TorchFunctionMode):
    """Weights that are made under it lie on the meta device; buffers, which no file has, are made as ever.

    (Modules make weights by ``torch.empty``, and buffers of what they know already.)
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


class Slots:
    """The places in ``trunk`` that a tensor goes to, by the names that ``whole``, which holds the trunk, has for it."""

    def __init__(self, whole: nn.Module, trunk: nn.Module):
        self._at: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
        self.inner: dict[int, str] = {}  # a name inside the trunk
        for path, module in trunk.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                self._at[id(parameter)].append((module, name))
                self.inner.setdefault(id(parameter), f"{path}.{name}")
        self._names: dict[int, list[str]] = defaultdict(list)
        self._ids: dict[str, int] = {}
        for name, parameter in whole.named_parameters(remove_duplicate=False):
            if id(parameter) in self._at:
                self._names[id(parameter)].append(name)
                self._ids[name] = id(parameter)
        self._shapes = {id(p): tuple(p.shape) for p in trunk.parameters()}

    def found_in(self, stored: Mapping[str, StoredTensor], prefix: str = "") -> dict[int, StoredTensor] | None:
        """The tensor for each place, in the files' order; None where one is missing or has another shape."""
        found: dict[int, StoredTensor] = {}
        for name, tensor in stored.items():
            place = self._ids.get(name.removeprefix(prefix)) if name.startswith(prefix) else None
            if place is not None and tensor.shape == self._shapes[place]:
                found.setdefault(place, tensor)
        return found if found.keys() == self._at.keys() else None

    def prefix_in(self, stored: Mapping[str, StoredTensor]) -> str | None:
        """What stands before the model's names in the files; None where that is not plain."""
        every = list(self._names.values())
        firsts = {key.removesuffix(name) for name in every[0] for key in stored if f".{key}".endswith(f".{name}")}
        fitting = [
            prefix for prefix in firsts if all(any(prefix + name in stored for name in names) for names in every)
        ]
        return fitting[0] if len(fitting) == 1 else None

    def plainly_in(self, stored: Mapping[str, StoredTensor]) -> dict[int, StoredTensor] | None:
        """``found_in``, by the prefix that the files have."""
        prefix = self.prefix_in(stored)
        return None if prefix is None else self.found_in(stored, prefix)

    def counted_on(self, stored: Mapping[str, StoredTensor]) -> list[str]:
        """The first tensor of each layer, or expert, in the files that is made like these but has no place. One that
        guesses tokens ahead is not made like them; files by other names than these are not looked at."""
        prefix = self.prefix_in(stored)
        if prefix is None:
            return []
        inner = [name.removeprefix(prefix) for name in stored if name.startswith(prefix)]
        counted = {head for name in self._ids for head in _heads(name)}
        others: dict[str, list[str]] = defaultdict(list)
        known = {_pattern(name) for name in self._ids}  # and what a layer that has a place holds beside
        for name in inner:
            if head := next((head for head in _heads(name) if head not in counted), None):
                others[head].append(name)
            else:
                known.add(_pattern(name))
        return [prefix + names[0] for names in others.values() if all(_pattern(name) in known for name in names)]

    @staticmethod
    def are_all(trunk: nn.Module) -> bool:
        """Whether parameters are all that files hold of ``trunk``: a buffer that is saved, and is a number with a
        fraction, would be left at what its class begins with."""
        names = {name for name, _ in trunk.named_parameters(remove_duplicate=False)}
        return not any(name not in names and t.is_floating_point() for name, t in trunk.state_dict().items())

    def modules(self, place: int) -> list[tuple[nn.Module, str]]:
        return self._at[place]


def fill(
    slots: Slots,
    tensors: Mapping[int, StoredTensor],
    dtype_of: Callable[[str], torch.dtype],
    storage: Storage,
    progress: Progress | None = None,
) -> None:
    """Put each tensor into its places. dtype_of: the dtype that the parameter of a name computes in."""
    done, total = 0, sum(tensor.nbytes for tensor in tensors.values())
    for place, tensor in tensors.items():
        if progress is not None:
            progress(done, total)
        at = slots.modules(place)
        modules, dtype = [module for module, _ in at], dtype_of(slots.inner[place])
        blocks = tensor.read()
        row = storage.row(tensor.format, tensor.shape, modules)
        if row is None:
            as_is = PLAIN.get(dtype) is tensor.format
            values = (blocks.view(dtype) if as_is else tensor.format.dense(blocks, dtype)).reshape(tensor.shape)
            parameter = nn.Parameter(values, requires_grad=False)
            for module, name in at:
                module._parameters[name] = parameter
        else:
            if row is not tensor.format:
                blocks = quantize(tensor.format.dense(blocks), row)
            shared = nn.Parameter(blocks, requires_grad=False)
            for module in modules:
                put_blocks(module, shared, row, dtype)
        done += tensor.nbytes
    if progress is not None:
        progress(total, total)
