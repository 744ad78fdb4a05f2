"""Language models: families as rows of facts, and the one text encoder that reads them."""

from .encoder import TextEncoder
from .families import LANGUAGE_FAMILIES, family_of
from .family import LanguageFamily
from .tokens import PromptReport, TokenBatch

__all__ = ["LANGUAGE_FAMILIES", "LanguageFamily", "PromptReport", "TextEncoder", "TokenBatch", "family_of"]
