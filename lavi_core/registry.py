"""A table of named things: a kind of adapter, of language model, of metric is one row of one table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

Row = TypeVar("Row")


class Registry(Mapping[str, Row], Generic[Row]):
    """name -> row. An unknown name raises ``ValueError`` that lists the known ones; no row is ever replaced."""

    def __init__(self, kind: str, rows: Mapping[str, Row]):
        self.kind = kind
        self._rows = dict(rows)

    def register(self, name: str, row: Row) -> None:
        """Add a row from outside of this tree. Raises ValueError for a name that is taken."""
        if name in self._rows:
            raise ValueError(f"the {self.kind} {name!r} is there already; give yours another name")
        self._rows[name] = row

    def __getitem__(self, name: str) -> Row:
        try:
            return self._rows[name]
        except KeyError:
            raise ValueError(f"unknown {self.kind} {name!r}; known: {', '.join(self._rows)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, name: object) -> bool:
        return name in self._rows
