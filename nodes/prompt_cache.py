"""A cache of encoded prompts: conditionings are kept by the bridge that made them and forgotten with it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from .timed import TIMED

T = TypeVar("T")  # what is told of a prompt

LIMIT = 64 * 2**20  # bytes: some 280 prompts of 77 tokens for Stable Diffusion 1, 30 of 120 tokens for PixArt


class PromptCache(Generic[T]):
    """The prompts that were used last, up to LIMIT bytes of context."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, tuple[Any, T]] = OrderedDict()

    def get(self, key: Hashable, encode: Callable[[], tuple[Any, T]]) -> tuple[Any, T]:
        """The conditioning and report under ``key``, by ``encode`` where there is none. Its tensors are shared, as in
        the host's own cache of node outputs; its list and dictionaries are the caller's."""
        if key not in self._kept:
            self._kept[key] = encode()
            while len(self._kept) > 1 and self.nbytes > LIMIT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        conditioning, report = self._kept[key]
        return [[context, dict(more)] for context, more in conditioning], report

    @property
    def nbytes(self) -> int:
        kept = [part for conditioning, _ in self._kept.values() for part in conditioning]
        return sum(context.nbytes + (more[TIMED].nbytes if TIMED in more else 0) for context, more in kept)

    def __len__(self) -> int:
        return len(self._kept)
