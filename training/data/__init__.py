"""Captioned pictures for training: where they come from, their latents, and the order they are seen in."""

from ...lavi_core.registry import Registry
from .latents import LatentCache
from .order import Order
from .sources import FolderSource, ShapeBenchSource, Source, TsvSource, UnreadableImage

SOURCES: Registry[type[Source]] = Registry(
    "data kind", {"tsv": TsvSource, "folder": FolderSource, "shapebench": ShapeBenchSource}
)

__all__ = ["SOURCES", "LatentCache", "Order", "Source", "UnreadableImage"]
