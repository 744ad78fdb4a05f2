"""What a data set of captioned pictures offers: the protocol that every data kind follows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np

from ..recipe import DataSection
from .resize_and_crop import Size

SHARD = 2048


class Example(NamedTuple):
    """One captioned picture on its way into the latents. caption: None where the source tells it by index."""

    name: str
    caption: str | None
    load: Callable[[], np.ndarray]  # uint8 [height width 3]; raises UnreadableImage


@dataclass(frozen=True)
class Shard:
    """Pictures that are encoded together into one file."""

    name: str
    print: str  # changes when any of them may have changed
    count: int | None  # None = known once they have been read
    read: Callable[[], Iterator[Example]]


class Captions(Protocol):
    """Captions by index, of which ``epoch`` may draw anew."""

    def __len__(self) -> int: ...

    def caption(self, index: int, epoch: int) -> str: ...

    def plain_caption(self, index: int, epoch: int) -> str:
        """The same in words that the vision model's own text encoder knows; the caption itself if that is unknown."""
        ...


class Source(Protocol):
    """Captioned pictures in shards."""

    section: DataSection

    def __init__(self, section: DataSection): ...

    @property
    def changing_captions(self) -> bool:
        """Whether a picture is captioned otherwise from epoch to epoch."""
        ...

    def shards(self) -> list[Shard]: ...

    def print_of_all(self) -> str | None:
        """The same wherever the data lies, another once pictures or captions were edited; None = not known."""
        ...


class IndexedSource(ABC):
    """A source of which every picture can be had by its index: ``SHARD`` neighbours make a shard."""

    changing_captions: bool = False
    section: DataSection

    @abstractmethod
    def __init__(self, section: DataSection): ...

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str: ...

    def place(self, index: int) -> str:
        """The part of its name that stays where the data is moved."""
        return self.name(index)

    @abstractmethod
    def image(self, index: int) -> np.ndarray:
        """uint8 [height width 3]; raises UnreadableImage."""

    def shape(self, index: int) -> tuple[Size, Size] | None:
        """(the picture's own size, that which it is trained at); None where it is drawn at that size. Raises
        UnreadableImage."""
        return None

    @abstractmethod
    def caption(self, index: int, epoch: int) -> str: ...

    def plain_caption(self, index: int, epoch: int) -> str:
        return self.caption(index, epoch)

    @abstractmethod
    def print_of(self, indices: range) -> str:
        """Changes when any of these pictures may have changed."""

    def captions(self, index: int) -> list[str] | None:
        """All that a picture may be captioned with; None where there is no end of them."""
        return None if self.changing_captions else [self.caption(index, 0)]

    def print_of_all(self) -> str | None:
        return None

    def shards(self) -> list[Shard]:
        return [self._shard(range(start, min(start + SHARD, len(self)))) for start in range(0, len(self), SHARD)]

    def _shard(self, part: range) -> Shard:
        name = f"pictures {part.start} to {part.stop - 1}"
        return Shard(name, self.print_of(part), len(part), partial(self._read, part))

    def _read(self, indices: range) -> Iterator[Example]:
        return (Example(self.name(index), None, partial(self.image, index)) for index in indices)
