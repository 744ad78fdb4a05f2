"""The recipe of a training run: every key of the TOML file with its default, as frozen dataclasses."""

from .reading import override_prompt, read_recipe, toml_value
from .recipe import Recipe
from .sections import (
    AdapterSection,
    AlignSection,
    DataSection,
    LanguageSection,
    LossSection,
    OptimizerSection,
    OwnEncoderSection,
    SampleSection,
    Training,
    ValidationSection,
    VisionSection,
)

__all__ = [
    "AdapterSection",
    "AlignSection",
    "DataSection",
    "LanguageSection",
    "LossSection",
    "OptimizerSection",
    "OwnEncoderSection",
    "Recipe",
    "SampleSection",
    "Training",
    "ValidationSection",
    "VisionSection",
    "override_prompt",
    "read_recipe",
    "toml_value",
]
