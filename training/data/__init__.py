"""Captioned pictures for training: where they come from, their latents, and the order they are seen in."""

from ...lavi_core.registry import Registry
from .drawn import ShapeBenchSource
from .framing import UnreadableImage
from .latents import LatentCache
from .listed import FolderSource, JsonlSource, TsvSource
from .order import Order
from .prefetch import Prefetch
from .sources import Captions, IndexedSource, Source
from .states import StateCache
from .tars import WebDatasetSource

SOURCES: Registry[type[Source]] = Registry(
    "data kind",
    {
        "tsv": TsvSource,
        "folder": FolderSource,
        "jsonl": JsonlSource,
        "webdataset": WebDatasetSource,
        "shapebench": ShapeBenchSource,
    },
)

__all__ = [
    "SOURCES",
    "Captions",
    "IndexedSource",
    "LatentCache",
    "Order",
    "Prefetch",
    "Source",
    "StateCache",
    "UnreadableImage",
]
