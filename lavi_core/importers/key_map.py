"""The names of one program's tensors and of ours as data that is read both ways."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

WILD = re.compile(r"[#*]")


@dataclass(frozen=True)
class Same:
    """One tensor of ours, and theirs that it is: several are its rows, one below the other, all of one height.

    In each name ``#`` stands for a number and ``*`` for any rest; those of theirs are filled in as in ours, in order.
    """

    ours: str
    theirs: tuple[str, ...]

    def names(self, name: str) -> tuple[str, ...] | None:
        """Theirs for a name of ours; None where it is another's."""
        pattern = re.escape(self.ours).replace(r"\#", r"(\d+)").replace(r"\*", "(.+)")
        found = re.fullmatch(pattern, name)
        return None if found is None else tuple(_filled(their, found.groups()) for their in self.theirs)


KeyMap = tuple[Same, ...]


def key_map(*pairs: tuple[str, str | tuple[str, ...]]) -> KeyMap:
    """pairs: (ours, theirs)."""
    return tuple(Same(ours, (theirs,) if isinstance(theirs, str) else theirs) for ours, theirs in pairs)


def theirs_of(names: Collection[str], keys: KeyMap) -> dict[str, tuple[str, ...]]:
    """Our name -> theirs, for all of an adapter's names. Raises ValueError for one that no row, or several, have."""
    found = {}
    for name in names:
        rows = [theirs for row in keys if (theirs := row.names(name)) is not None]
        if len(rows) != 1:
            raise ValueError(f"the adapter's tensor {name} has {len(rows)} names in this format, it must have one")
        found[name] = rows[0]
    return found


def joined(tensors: Mapping[str, Tensor], names: Mapping[str, tuple[str, ...]]) -> dict[str, Tensor]:
    """Theirs as ours."""
    return {
        ours: tensors[theirs[0]] if len(theirs) == 1 else torch.cat([tensors[name] for name in theirs])
        for ours, theirs in names.items()
    }


def parted(tensors: Mapping[str, Tensor], names: Mapping[str, tuple[str, ...]]) -> dict[str, Tensor]:
    """Ours as theirs: the inverse of ``joined``."""
    return {
        name: part.contiguous()
        for ours, theirs in names.items()
        for name, part in zip(theirs, _parts(tensors[ours], len(theirs)), strict=True)
    }


def _parts(tensor: Tensor, count: int) -> tuple[Tensor, ...]:
    return (tensor,) if count == 1 else tensor.chunk(count)


def _filled(pattern: str, parts: tuple[str, ...]) -> str:
    rest = iter(parts)
    return WILD.sub(lambda _: next(rest), pattern)
