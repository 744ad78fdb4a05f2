"""The weights of a diffusers network under the host's names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

# As the host's own maps say it: a name; (name, (dimension, first row, rows)), a part of a whole; or (name, None, what
# is done to it).
Place = str | tuple[Any, ...]
Rule = tuple[str, str]  # of re.sub


def renamed(state: dict[str, Tensor], known: Mapping[str, Place], rules: Iterable[Rule] = ()) -> dict[str, Tensor]:
    """Empties ``state``. rules: applied one after the other to the names that are not in ``known``.

    A part is joined with the others where all are there; else it keeps its name, under which the network has none.
    """
    found: dict[str, Tensor] = {}
    parts: dict[str, list[tuple[int, str]]] = {}
    for key, place in known.items():
        if isinstance(place, tuple) and place[1] is not None:
            parts.setdefault(place[0], []).append((place[1][1], key))
    for name, keys in parts.items():
        if all(key in state for _, key in keys):
            found[name] = torch.cat([state.pop(key) for _, key in sorted(keys)])
    for key in list(state):
        place, weight = known.get(key), state.pop(key)
        if isinstance(place, str):
            found[place] = weight
        elif place is not None and place[1] is None:
            found[place[0]] = place[2](weight)
        else:
            found[substituted(key, rules)] = weight
    return found


def substituted(name: str, rules: Iterable[Rule]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def places(names: Iterable[str], keys: Any, rules: Iterable[Rule] = ()) -> dict[str, Place]:
    """Where the LoRA of these weights would land, by a row's KeyFormat of the host's own names, and so where the
    weights are; rules: for what a LoRA does not adapt."""
    rules, found = tuple(rules), dict[str, Place]()
    for name in names:
        path, _, end = name.rpartition(".")
        stem = keys.stem(path).removeprefix(keys.prefix)
        host = substituted(f"{stem}.{end}" if path else name, rules)
        part = keys.part(path)
        found[name] = host if part is None else (host, (0, part, 1))
    return found
