"""The report of a dry run: facts, notes, and the problems that would stop the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass
class Report:
    """problems: why the run would fail, a sentence each. notes: what to know of a run that would not. rows: facts,
    each of which ``tell`` is given as soon as it is known."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rows: list[tuple[str, str]] = field(default_factory=list)
    tell: Callable[[str], Any] = lambda _: None

    def add(self, name: str, value: str) -> None:
        self.rows.append((name, value))
        self.tell(_line(name, value))

    def got(self, find: Callable[..., T], *args: Any) -> T | None:
        """What ``find`` returns; what it raises is a problem, and None."""
        try:
            return find(*args)
        except ImportError as error:
            self.problems.append(f"{error}; install lavi-bridge[train]")
        except (ValueError, OSError) as error:
            self.problems.append(str(error))
        return None

    def __str__(self) -> str:
        return "\n".join([*(_line(*row) for row in self.rows), self.conclusion()])

    def conclusion(self) -> str:
        """Notes and problems, with an empty line before each; empty where there are none."""
        lines = []
        for title, found in (("notes", self.notes), ("problems", self.problems)):
            if found:
                lines += ["", title, *(f"  {i}. {text}" for i, text in enumerate(found, 1))]
        return "\n".join(lines)


def _line(name: str, value: str) -> str:
    return f"{name:<22} {value}".rstrip()


def in_bytes(count: float) -> str:
    """A number of bytes for a person: three digits and a unit."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.2f} GB"
