"""ShapeBench's captions read back: prompt -> what it names; and its prompts as a file."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from ..shapebench import VOCABULARIES, PromptSpec, prompts
from ..shapebench.caption import plural
from ..shapebench.vocabulary import Concept
from .shapebench import ROWS, Row

WORDS = VOCABULARIES["full, many words"]  # every word of every vocabulary
# Category -> row of the benchmark. T2I-CompBench has categories of the same names: these are never taken for its.
BY_CATEGORY = {f"ShapeBench {row.name}": row for row in ROWS}


def spec_of(prompt: str) -> PromptSpec | None:
    """What ``prompt`` names, where it is a caption of ShapeBench in any of its splits; None for any other text."""
    text = " ".join(prompt.lower().split()).removesuffix(".").removeprefix("a picture of ")
    for words, relation in _joints():
        first, joint, second = text.partition(words)
        if joint:
            objects = _things(first) + _things(second)
            return PromptSpec(objects, relation) if len(objects) == 2 else None
    objects = _things(text)
    return PromptSpec(objects) if objects else None


def table_of(rows: Sequence[str], count: int, seed: int, vocabulary: str = "small") -> str:
    """The text of a .tsv, prompt and category, with ``count`` prompts of each of ``shapes.ROWS`` by name, those that
    ``shapes.evaluate`` draws for the same seed. Raises ValueError for an unknown row."""
    return "".join(
        f"{text}\tShapeBench {row.name}\n"
        for row in (row_of(name) for name in rows)
        for text, _ in prompts(row.category, count, seed + 1, VOCABULARIES[vocabulary], row.split)
    )


def row_of(name: str) -> Row:
    found = [row for row in ROWS if row.name == name]
    if not found:
        raise ValueError(f"ShapeBench has no prompts {name!r}; known: {', '.join(row.name for row in ROWS)}")
    return found[0]


def _things(phrase: str) -> tuple[tuple[str, str, str | None], ...]:
    """The objects of one noun phrase, as often as its number says; () where it is none of ours."""
    number, counted = 1, _first(phrase, _words(WORDS.counts))
    if counted is not None:
        number = [concept.name for concept in WORDS.counts].index(counted[0]) + 1
        phrase = counted[1]
    elif article := _first(phrase, {"a": "", "an": ""}):
        phrase = article[1]
    texture = _first(phrase, _words(WORDS.textures))
    if texture is not None:
        phrase = texture[1]
    color = _first(phrase, _words(WORDS.colors))
    if color is None:
        return ()
    shapes = _words(WORDS.shapes)
    if number > 1:
        shapes = {plural(word): name for word, name in shapes.items()}
    shape = shapes.get(color[1])
    return ((color[0], shape, texture and texture[0]),) * number if shape else ()


def _first(phrase: str, words: dict[str, str]) -> tuple[str, str] | None:
    """(name, rest) of the longest of ``words`` that begins ``phrase`` and leaves something."""
    for word in sorted(words, key=len, reverse=True):
        if phrase.startswith(f"{word} "):
            return words[word], phrase.removeprefix(f"{word} ")
    return None


@cache
def _joints() -> tuple[tuple[str, str | None], ...]:
    """Every way to join two phrases, the longest first: "to the left of" before "left of"."""
    relations = {f" {word} ": name for word, name in _words(WORDS.relations).items()}
    return tuple(sorted((relations | {" and ": None}).items(), key=lambda item: -len(item[0])))


def _words(concepts: Sequence[Concept]) -> dict[str, str]:
    """Every word for a concept -> its name."""
    return {word: c.name for c in concepts for word in (c.name, *c.synonyms, *c.held_out)}
