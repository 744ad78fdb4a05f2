"""Which tokens of one tokenizer stand for the tokens of another: by the characters that they cover."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ...lavi_core.language.tokens import tokenize
from ...lavi_core.prompt import PromptRecipe

Kind = Literal["word", "before", "after", "padding"]


class Place(NamedTuple):
    """Of one token. word: the number of the word that it lies in; start, end: its characters, counted in the word."""

    kind: Kind
    word: int = 0
    start: int = 0
    end: int = 0


def places(tokenizer: Any, text: str, length: int, add_special_tokens: bool = True) -> list[Place]:
    """The places of the ``length`` tokens of ``text``, read as a language model reads it (a special token's name in it
    is text, and "!" is text to an SDXL's second tokenizer, which pads with it), padded on the right. Needs a tokenizer
    with offsets."""
    recipe = PromptRecipe(max_length=length, add_special_tokens=add_special_tokens)
    spans = tokenize(tokenizer, [text], recipe).reports[0].spans
    words = [match.span() for match in re.finditer(r"\S+", text)]
    begins = [first for first, _ in words]
    found: list[Place] = []
    for start, end in (span or (0, 0) for span in spans):
        if end <= start or not words:
            found.append(Place("after" if found else "before"))
            continue
        near = range(max(bisect_right(begins, start) - 1, 0), min(bisect_left(begins, end) + 1, len(words)))
        word = max(near, key=lambda i: min(end, words[i][1]) - max(start, words[i][0]))  # of mere space: the nearest
        first, last = words[word]
        found.append(Place("word", word, max(start, first) - first, max(min(end, last), first) - first))
    return found + [Place("padding")] * (length - len(found))


def matches(
    caption: str, plain: str, ours: Sequence[Place], theirs: Sequence[Place], padding: Literal["padding", "ends"]
) -> Tensor:
    """[T T'] float32: a row for each token of ``caption``, of equal weights over the teacher's tokens of ``plain`` that
    stand for it and sum to 1; zeros where there are none, since the teacher's text was cut.

    A word goes to the same word, and of it to the tokens that cover the same characters; a word of a paraphrase to the
    whole of the word in its place. padding: see ``AlignSection``.
    """
    said, known = caption.split(), plain.split()
    same = same_words(said, known)
    of_word: dict[int, list[int]] = {}
    of_kind: dict[str, list[int]] = {}
    for index, place in enumerate(theirs):
        of_kind.setdefault(place.kind, []).append(index)
        if place.kind == "word":
            of_word.setdefault(place.word, []).append(index)
    first, end = of_kind.get("word", [0])[0], of_kind.get("word", [0])[-1] + 1
    last = len(theirs) - 1
    rows: list[int] = []
    columns: list[int] = []
    shares: list[float] = []
    for index, place in enumerate(ours):
        if place.kind == "word":
            found = of_word.get(same[place.word], [])
            if found and said[place.word] == known[same[place.word]]:
                covers = [i for i in found if theirs[i].start < place.end and place.start < theirs[i].end]
                found = covers or found
        elif place.kind == "before":
            found = of_kind.get("before", [0])[:1]
        elif place.kind == "after":
            found = of_kind.get("after", [min(end, last)])[:1]
        elif padding == "ends":
            found = [first if index % 2 else end - 1]
        else:
            found = [min(max(index, of_kind.get("padding", [last])[0]), last)]
        rows += [index] * len(found)
        columns += found
        shares += [1 / len(found) for _ in found]
    weights = torch.zeros(len(ours), len(theirs))
    weights[rows, columns] = torch.tensor(shares)
    return weights


def same_words(words: Sequence[str], plain: Sequence[str]) -> list[int]:
    """For every word of a paraphrase the word of the plain caption that it stands for."""
    same = [0] * len(words)
    for _, i1, i2, j1, j2 in SequenceMatcher(None, words, plain, autojunk=False).get_opcodes():
        for i in range(i1, i2):
            same[i] = min(j1 + (i - i1) * max(j2 - j1, 1) // (i2 - i1), max(len(plain) - 1, 0))
    return same
