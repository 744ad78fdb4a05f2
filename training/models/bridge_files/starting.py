"""The bridge that a run starts from, checked against the run's models."""

from __future__ import annotations

import logging

from ....lavi_core.bridge import check_language
from ....lavi_core.checkpoint import BridgeCheckpoint
from ....lavi_core.config import LanguageConfig
from ....lavi_core.importers import read_any
from ..vision_model import VisionModel

log = logging.getLogger(__name__)


def started_from(path: str, preset: str | None, language: LanguageConfig, vision: VisionModel) -> BridgeCheckpoint:
    """Read it. Raises ValueError for another language model than it was made for, and for a vision model that takes
    other widths; another vision model of the same widths is what it may be trained on for."""
    start = read_any(path, preset)
    try:
        check_language(start.config.language, language)
    except ValueError as error:
        raise ValueError(f"adapter.from = {path}: {error}") from None
    adapter = start.config.adapter
    sizes = (
        ("context", adapter.out_width, vision.context_width),
        ("pooled", adapter.pooled_width, vision.pooled_width),
    )
    for what, gives, takes in sizes:
        if gives != takes:
            raise ValueError(
                f"adapter.from = {path} gives {what} width {gives}, the vision model {vision.model_id} takes {takes}: "
                "start from another bridge, or train on another vision model"
            )
    for side, lora in (("language", start.language_lora), ("vision", start.vision_lora)):
        if lora:
            log.warning("the %s LoRA of %s is not taken over: the run starts from its adapter alone", side, path)
    return start
