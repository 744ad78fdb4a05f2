"""Weights that transformers renames, joins or takes apart when it loads them, from files under a model's own names.

By its own tables, which it has since release 5; nothing is found here in releases before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..quantized.formats import PLAIN
from .tensor_files import StoredTensor

Sources = Mapping[str, list[StoredTensor]]  # what a conversion calls a part -> the tensors that it is made of


def converted(whole: Any, stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors of files under their names in ``whole``, a transformers model on the meta device.

    One that was renamed is the same tensor; one that several are joined into is made of them when it is read.
    What cannot be told is left out.
    """
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
            rename_source_key,
        )
    except ImportError:
        return {}
    table = get_model_conversion_mapping(whole)
    renamings = [row for row in table if isinstance(row, WeightRenaming)]
    converters = [row for row in table if isinstance(row, WeightConverter)]
    own, prefix = whole.state_dict(), whole.base_model_prefix
    found: dict[str, StoredTensor] = {}
    parts: dict[str, dict[str, list[StoredTensor]]] = defaultdict(lambda: defaultdict(list))
    by: dict[str, Any] = {}
    for name in sorted(stored, key=dot_natural_key):  # experts are stacked in the order of their numbers
        target, part = rename_source_key(name, renamings, converters, prefix, own)
        if target not in own and name in own:
            target, part = rename_source_key(name, [], [], prefix, own)
        if target not in own:
            continue
        if part is None:
            found.setdefault(target, stored[name])
        else:
            by.setdefault(target, next(row for row in converters if part in row.source_patterns))
            parts[target][part].append(stored[name])
    for target, sources in parts.items():
        found |= _made(by[target], target, sources, whole)
    return found


def _made(converter: Any, target: str, sources: Sources, whole: Any) -> dict[str, StoredTensor]:
    """Name -> the tensor that a conversion makes; none where it needs more than the shapes of its sources."""
    try:
        likes = _run(converter, target, {part: [_like(t) for t in each] for part, each in sources.items()}, whole)
    except Exception:  # each conversion fails in its own way
        return {}
    made = {}
    for name, like in likes.items():
        if like.dtype in PLAIN:
            read = partial(_read, converter, target, sources, whole, name)
            rows = read if _is_stack(converter, target, sources, whole, name, like) else None
            made[name] = StoredTensor(tuple(like.shape), PLAIN[like.dtype], read, rows)
    return made


def _run(converter: Any, target: str, sources: Mapping[str, list[Tensor]], whole: Any) -> dict[str, Tensor]:
    one = deepcopy(converter)
    for part, tensors in sources.items():
        one.collected_tensors[part] = list(tensors)
    made = one.convert(target, model=whole, config=whole.config)
    return {name: tensor[0] if isinstance(tensor, list) else tensor for name, tensor in made.items()}


def _read(converter: Any, target: str, sources: Sources, whole: Any, name: str, rows: slice | None = None) -> Tensor:
    """The blocks of the tensor called ``name``. rows: of a stack, which are made of as many of its sources."""
    values = {part: [_values(t) for t in (each if rows is None else each[rows])] for part, each in sources.items()}
    return _run(converter, target, values, whole)[name].contiguous().view(torch.uint8)


def _is_stack(converter: Any, target: str, sources: Sources, whole: Any, name: str, like: Tensor) -> bool:
    """Whether each entry of the first dimension is made of one source of each part: then a few experts can be read."""
    if any(len(each) != len(like) for each in sources.values()) or len(like) < 2:
        return False
    try:
        first = _run(converter, target, {part: [_like(each[0])] for part, each in sources.items()}, whole)[name]
    except Exception:  # of so few sources it makes nothing
        return False
    return first.shape == (1, *like.shape[1:])


def _dtype(tensor: StoredTensor) -> torch.dtype:
    """That of its values once they are read."""
    plain = next((dtype for dtype, row in PLAIN.items() if row is tensor.format), torch.float32)
    return plain if plain.itemsize > 1 else torch.float32


def _like(tensor: StoredTensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=_dtype(tensor), device="meta")


def _values(tensor: StoredTensor) -> Tensor:
    return tensor.format.dense(tensor.read(), _dtype(tensor)).reshape(tensor.shape)
