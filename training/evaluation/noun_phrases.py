"""Noun phrases of a prompt: by spaCy, as T2I-CompBench takes them, or by a few rules without it."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

from .metric_weights import Weights

# Chunks of spaCy's that are no things: T2I-CompBench leaves them out (BLIP_vqa.py).
NO_THINGS = {"top", "the side", "the left", "the right"}


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
# Over one letter a word: D determiner, W another, "." a break. A comma that joins two adjectives ("the soft, fluffy
# pillow") has a single word between the article and itself, and a word with its noun after it.
RUN = re.compile("DW(?:,W)*,WW+|D?W+")


class Splitter(Protocol):
    """name: goes into every result that was made with it."""

    @property
    def name(self) -> str: ...

    def phrases(self, text: str) -> list[str]: ...  # noun phrases, in order

    def nouns(self, text: str) -> list[str]: ...  # in order

    def around(self, text: str, places: Collection[str]) -> list[str]: ...  # the nearest noun on either side of each

    def without_adjectives(self, text: str) -> str: ...


@dataclass(frozen=True)
class Rules:
    """No tagger: a phrase ends at the closed classes of words (prepositions, conjunctions, forms of be and have), at a
    word in -ing or at punctuation but for commas between adjectives; an article or number begins the next. Its last
    word is the noun, those between are adjectives."""

    name: str = "rules"

    def phrases(self, text: str) -> list[str]:
        return [" ".join(text[run[0].start() : run[-1].end()].split()) for run in self._runs(text)]

    def nouns(self, text: str) -> list[str]:
        return [run[-1].group() for run in self._runs(text)]

    def around(self, text: str, places: Collection[str]) -> list[str]:
        nouns = [run[-1] for run in self._runs(text)]
        found = []
        for place in re.finditer(rf"\b(?:{'|'.join(map(re.escape, places))})\b", text):
            found += [noun.group() for noun in nouns if noun.end() <= place.start()][-1:]
            found += [noun.group() for noun in nouns if noun.start() >= place.end()][:1]
        return found

    def without_adjectives(self, text: str) -> str:
        for run in reversed(self._runs(text)):
            kept = [word.group() for word in run[:-1] if _letter(word.group()) == "D"]
            text = text[: run[0].start()] + " ".join([*kept, run[-1].group()]) + text[run[-1].end() :]
        return text

    def _runs(self, text: str) -> list[list[re.Match[str]]]:
        words = list(WORD.finditer(text))
        letters = "".join(_letter(word.group()) for word in words)
        return [words[run.start() : run.end()] for run in RUN.finditer(letters)]


def _letter(word: str) -> str:
    """Of RUN."""
    low = word.lower()
    verb = low.endswith("ing") and low not in NO_VERBS
    if low == ",":
        return ","
    if low in BREAKS or verb or not low[0].isalnum():
        return "."
    return "D" if low in DETERMINERS else "W"


@dataclass(frozen=True)
class Spacy:
    model: Any
    name: str

    def phrases(self, text: str) -> list[str]:
        return [chunk.text for chunk in self.model(text).noun_chunks if chunk.text not in NO_THINGS]

    def nouns(self, text: str) -> list[str]:
        return _nouns(list(self.model(text)), "NOUN")

    def around(self, text: str, places: Collection[str]) -> list[str]:
        """As T2I-CompBench looks for them (2D_spatial_eval.py, --complex): a name counts before a place, after it only
        where no noun follows."""
        tokens = list(self.model(text))
        words = [token.text for token in tokens]
        found = []
        for i in range(len(words)):
            size = next((n for n in (3, 2, 1) if " ".join(words[i : i + n]) in places), 0)
            if size:
                found += _nouns(tokens[:i], "NOUN", "PROPN")[-1:]
                after = tokens[i + size :]
                found += (_nouns(after, "NOUN") or _ends_of_names(after))[:1]
        return found

    def without_adjectives(self, text: str) -> str:
        return "".join(token.text_with_ws for token in self.model(text) if token.pos_ != "ADJ").strip()


def _nouns(tokens: Sequence[Any], *kinds: str) -> list[str]:
    return [token.text for token in tokens if token.pos_ in kinds]


def _ends_of_names(tokens: Sequence[Any]) -> list[str]:
    return [a.text for a, b in pairwise(tokens) if a.pos_ == "PROPN" and b.pos_ != "PROPN"]


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
