"""Weights that stay in their files: those of a layer are read when it runs, and gone when it has run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..quantized.stand_in import StandIn
from .tensor_files import StoredTensor
from .weight_loading import Slots

Place = tuple[nn.Module, str]


class _InFile(StandIn):
    why = "is streamed from disk, which only its module reads; load the language model whole"
    computes_on = torch.device("cpu")


def stream(
    trunk: nn.Module,
    slots: Slots,
    tensors: Mapping[int, StoredTensor],
    dtype_of: Callable[[str], torch.dtype],
    opened: Any,
) -> None:
    """Hook the modules of ``trunk``, whose weights are on the meta device, so that these are there while they run.

    A layer has all of its weights, since some compute with those of their parts (Mamba); what is in no layer has its
    own. dtype_of: the dtype that the parameter of a name computes in. opened: what keeps the files open, as long as the
    modules are there.
    """
    sources: dict[Place, tuple[StoredTensor, torch.dtype]] = {}
    for place, tensor in tensors.items():
        dtype = dtype_of(slots.inner[place])
        for module, name in slots.modules(place):
            sources[module, name] = tensor, dtype
            absent = torch.empty(tensor.shape, dtype=dtype, device="meta").as_subclass(_InFile)
            module._parameters[name] = nn.Parameter(absent, requires_grad=False)
    holders = dict.fromkeys(module for module, _ in sources)
    layers = dict.fromkeys(_layers(trunk))
    for module in [*layers, *holders]:
        inside = set(module.modules()) if module in layers else {module}
        _hook(module, {place: source for place, source in sources.items() if place[0] in inside}, opened)


def read_buffers(trunk: nn.Module, whole: nn.Module, stored: Mapping[str, StoredTensor]) -> bool:
    """Put the buffers of ``trunk`` that files hold (the bias of a router, say) into it, to stay; False where one is not
    among ``stored``, which are under the names of ``whole``, the model around it."""
    names = {id(buffer): name for name, buffer in whole.named_buffers()}
    for module in trunk.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name in module._non_persistent_buffers_set or not buffer.is_floating_point():
                continue
            tensor = stored.get(names.get(id(buffer), ""))
            if tensor is None or tensor.shape != tuple(buffer.shape):
                return False
            module._buffers[name] = tensor.format.dense(tensor.read(), buffer.dtype).reshape(tensor.shape)
    return True


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    """The entries of the outermost lists."""
    for child in model.children():
        if isinstance(model, nn.ModuleList) and not isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield child
        else:
            yield from _layers(child)


def _hook(module: nn.Module, sources: Mapping[Place, tuple[StoredTensor, torch.dtype]], opened: Any) -> None:
    taken: list[list[tuple[Place, nn.Parameter]]] = []

    def read(*_: Any, files: Any = opened) -> None:
        now = []
        for (holder, name), (tensor, dtype) in sources.items():
            absent = holder._parameters[name]
            if absent is not None and absent.is_meta:  # not what the layer around it has read
                values = tensor.format.dense(tensor.read(), dtype).reshape(tensor.shape)
                holder._parameters[name] = nn.Parameter(values, requires_grad=False)
                now.append(((holder, name), absent))
        taken.append(now)

    def drop(*_: Any) -> None:
        for (holder, name), absent in taken.pop() if taken else ():  # another hook can leave before this one reads
            holder._parameters[name] = absent

    module.register_forward_pre_hook(read)
    module.register_forward_hook(drop, always_call=True)  # a pass may be left in the middle
