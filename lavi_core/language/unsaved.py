"""Weights that a model has and its files do not: those that the saved class ties to others or computes anew."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..quantized.formats import FORMATS
from .tensor_files import StoredTensor


def completed(stored: Mapping[str, StoredTensor], whole: Any) -> dict[str, StoredTensor]:
    """``stored``, the tensors of a model's files, and beside them what its class left out when it saved them.

    whole: the model on the meta device, whose config names that class; it may be another, which ties less.
    """
    import transformers

    kinds = [getattr(transformers, name, None) for name in getattr(whole.config, "architectures", None) or ()]
    found = dict(stored)
    for kind in kinds:
        ties = getattr(kind, "_tied_weights_keys", None)
        if isinstance(ties, Mapping):  # a list before transformers 5, which does not say to what
            found = _tied(found, ties) | found
        found = _computed(found, getattr(kind, "_keys_to_ignore_on_save", None) or (), whole) | found
    return found


def _tied(stored: Mapping[str, StoredTensor], ties: Mapping[str, str]) -> dict[str, StoredTensor]:
    return {name: stored[other] for name, other in ties.items() if other in stored}


def _computed(stored: Mapping[str, StoredTensor], names: Iterable[str], whole: Any) -> dict[str, StoredTensor]:
    """Tables of sines: the model's own initial values, which are no random ones or it would save them."""
    prefix, modules, made = f"{whole.base_model_prefix}.", dict(whole.named_modules()), {}
    for name in names:
        path, _, leaf = name.removeprefix(prefix).rpartition(".")
        weight = modules[path]._parameters.get(leaf) if path in modules else None
        if weight is not None:
            read = partial(_initial, whole, modules[path], leaf)
            made[name] = StoredTensor(tuple(weight.shape), FORMATS["F32"], read)
    return made


def _initial(whole: Any, module: nn.Module, leaf: str) -> Tensor:
    """What the model's class begins a weight with, as float32 blocks."""
    made, weight = copy.copy(module), module._parameters[leaf]
    assert weight is not None
    made._parameters = {leaf: nn.Parameter(torch.empty(weight.shape), requires_grad=False)}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        whole._init_weights(made)
    values = made._parameters[leaf]
    assert values is not None
    return values.detach().contiguous().view(torch.uint8)
