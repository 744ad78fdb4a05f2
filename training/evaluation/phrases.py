"""The things that a prompt names: noun phrases by spaCy, as T2I-CompBench takes them, or by a few rules without it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Protocol

from .weights import Weights

# Chunks of spaCy's that are no things: T2I-CompBench leaves them out (BLIP_vqa.py).
NO_THINGS = {"top", "the top", "the side", "the left", "the right", "the bottom"}


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


DETERMINERS = _set("a an the one two three four five six seven eight nine ten some several many his her its their")
BREAKS = _set(
    "and or but with without on in at of to from by for near next beside behind under over above below between into "
    "onto across through against along around inside outside while as that which who is are was were be has have "
    "having wears holds sits stands side left right top bottom each other up down out off it they he she"
)
NO_VERBS = _set("ring king wing string spring ceiling building painting clothing evening morning thing earring")
WORD = re.compile(r"[^\W_]+(?:[-'][^\W_]+)*|[,.;:!?()]")


class Splitter(Protocol):
    """name: goes into every result that was made with it."""

    @property
    def name(self) -> str: ...

    def phrases(self, text: str) -> list[str]: ...  # noun phrases, in order

    def nouns(self, text: str) -> list[str]: ...  # in order

    def without_adjectives(self, text: str) -> str: ...


@dataclass(frozen=True)
class Rules:
    """No tagger: a phrase ends at the closed classes of words (prepositions, conjunctions, forms of be and have), at a
    word in -ing or at punctuation; an article or number begins the next. Its last word is the noun, those between are
    adjectives."""

    name: str = "rules"

    def phrases(self, text: str) -> list[str]:
        return [" ".join(words) for words in self._runs(text)]

    def nouns(self, text: str) -> list[str]:
        return [words[-1] for words in self._runs(text)]

    def without_adjectives(self, text: str) -> str:
        for words in self._runs(text):
            kept = [word for word in words[:-1] if word.lower() in DETERMINERS]
            text = text.replace(" ".join(words), " ".join([*kept, words[-1]]), 1)
        return text

    def _runs(self, text: str) -> list[list[str]]:
        runs: list[list[str]] = [[]]
        for word in WORD.findall(text):
            low = word.lower()
            verb = low.endswith("ing") and low not in NO_VERBS
            if low in BREAKS or verb or not low[0].isalnum():
                runs.append([])
            elif low in DETERMINERS:
                runs.append([word])
            else:
                runs[-1].append(word)
        return [words for words in runs if words and words[-1].lower() not in DETERMINERS]


@dataclass(frozen=True)
class Spacy:
    model: Any
    name: str

    def phrases(self, text: str) -> list[str]:
        return [chunk.text for chunk in self.model(text).noun_chunks if chunk.text.lower() not in NO_THINGS]

    def nouns(self, text: str) -> list[str]:
        return [token.text for token in self.model(text) if token.pos_ == "NOUN"]

    def without_adjectives(self, text: str) -> str:
        return "".join(token.text_with_ws for token in self.model(text) if token.pos_ != "ADJ").strip()


def splitter(weights: Weights) -> Splitter:
    """spaCy's where its model is named, the rules where it is not; either is named in what comes of it.

    Raises ValueError where the model is named and spaCy is not installed."""
    if "spacy" not in weights.paths:
        return Rules()
    folder = weights.get("spacy")
    try:
        import spacy  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(f"{weights.source} names {folder} for spacy, which is not installed: install spacy") from None
    model = spacy.load(folder)
    return Spacy(model, f"spacy {model.meta['name']} {model.meta['version']}")
