"""Captioned pictures for training: where they come from, their latents, and the order they are seen in."""

from ...lavi_core.registry import Registry
from .image_files import FolderSource, JsonlSource, TsvSource
from .latent_cache import LatentCache
from .latent_encoding import MAX_UNREADABLE
from .order import Order
from .prefetch import Prefetch
from .resize_and_crop import UnreadableImage
from .shapebench import ShapeBenchSource
from .sources import Captions, IndexedSource, Source
from .text_states import TextStateCache
from .webdataset import WebDatasetSource

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
    "MAX_UNREADABLE",
    "SOURCES",
    "Captions",
    "IndexedSource",
    "LatentCache",
    "Order",
    "Prefetch",
    "Source",
    "TextStateCache",
    "UnreadableImage",
]
