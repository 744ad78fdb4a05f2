"""One copy of a model in memory, however many nodes load it: while one is alive, the next is given a clone."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from weakref import WeakValueDictionary

from comfy.model_patcher import ModelPatcher

# Held by their clones alone, each of which knows the patcher that it is a clone of: gone with the last of them.
_LOADED: WeakValueDictionary[Hashable, ModelPatcher] = WeakValueDictionary()


def shared(key: Hashable, load: Callable[[], ModelPatcher]) -> ModelPatcher:
    """A clone, without patches, of the patcher that ``load`` gives or gave for this key: patches are its own, weights
    are shared. The host puts one's patches in before it runs and takes them out before another runs."""
    found = _LOADED.get(key)
    if found is None:
        found = _LOADED[key] = load()
    return found.clone()
