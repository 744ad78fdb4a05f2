"""The captions of a probe: those that its maps are solved on, others, and some with words that the first never have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..data import SOURCES
from ..models.bridge_files.encoding import read_prompts
from ..recipe import DataSection
from ..shapebench import CATEGORIES, VOCABULARIES, caption, sample_scene

LEAST = 96  # captions of a file, below which nothing can be told
KINDS = {".tsv": "tsv", ".jsonl": "jsonl"}
SYNONYMS = ("single", "color", "texture", "spatial")  # the categories that are judged with held-out synonyms


class Text(NamedTuple):
    """A caption, and the same in plain words; the caption itself where there are none."""

    said: str
    plain: str


@dataclass(frozen=True)
class Split:
    """fit: for the maps. test: no caption of fit. unseen: each has words that fit never has, if any could be had;
    named: whether its plain words are known to fit, so that a new word's meaning is."""

    name: str
    fit: Sequence[Text]
    test: Sequence[Text]
    unseen: Sequence[Text]
    named: bool

    @cached_property
    def known(self) -> frozenset[str]:
        """The words of fit."""
        return frozenset(normal(word) for text in self.fit for word in text.said.split())

    @property
    def all(self) -> list[Text]:
        return [*self.fit, *self.test, *self.unseen]


def normal(word: str) -> str:
    """A word of a caption without its case and the punctuation about it."""
    return word.lower().strip(".,;:!?\"'()[]") or word


def of_shapebench(vocabulary: str, count: int, seed: int = 0) -> Split:
    """``count`` captions for the maps, a quarter as many for each of the others. Training captions take a synonym half
    of the time; unseen ones have a held-out synonym for every concept."""
    words = VOCABULARIES[f"{vocabulary.removesuffix(', many words')}, many words"]

    def draw(split: str, number: int, categories: Sequence[str]) -> list[Text]:
        found = []
        for i in range(number):
            rng = np.random.default_rng([seed, len(split), i])
            scene = sample_scene(rng, categories[i % len(categories)], words, "train")
            state = rng.bit_generator.state  # the frame is drawn first: both kinds of caption share it
            said = caption(scene, rng, split, words)
            rng.bit_generator.state = state
            found.append(Text(said, caption(scene, rng, "test", words)))
        return found

    drawn = list(dict.fromkeys(draw("train", count + count // 2, CATEGORIES)))
    unseen = list(dict.fromkeys(draw("synonyms", count // 4, SYNONYMS)))
    return Split(f"ShapeBench, {words.name}", drawn[:count], drawn[count : count + count // 4], unseen, named=True)


def of_file(path: Path, count: int, seed: int = 0) -> Split:
    """At most 3/2 ``count`` distinct captions of a .txt (one a line), or of what ``data.kind`` reads: a table, a
    metadata.jsonl, a folder of images and .txt. Words are held out, each of a few captions, until a sixth of the
    captions have one; another sixth is test. Raises ValueError for fewer than LEAST captions."""
    captions = list(dict.fromkeys(text for text in _read(path) if text.strip()))
    if len(captions) < LEAST:
        raise ValueError(f"{path} has {len(captions)} different captions; a probe needs {LEAST} and more")
    rng = np.random.default_rng(seed)
    captions = [captions[i] for i in rng.permutation(len(captions))[: count + count // 2]]
    sets = [{normal(word) for word in text.split()} for text in captions]
    counts = Counter(word for words in sets for word in words)
    rare = sorted(word for word, n in counts.items() if 2 <= n <= max(2, len(captions) // 10) and word.isalpha())
    held: set[str] = set()
    chosen: set[int] = set()
    for i in rng.permutation(len(rare)):
        if len(chosen) >= len(captions) // 6:
            break
        held.add(rare[i])
        chosen |= {k for k, words in enumerate(sets) if rare[i] in words}
    rest = [text for k, text in enumerate(captions) if k not in chosen]
    texts = [Text(text, text) for text in rest]
    size = len(captions) // 6
    unseen = [Text(captions[k], captions[k]) for k in sorted(chosen)]
    return Split(path.name, texts[size:], texts[:size], unseen, named=False)


def _read(path: Path) -> list[str]:
    if path.suffix.lower() == ".txt":
        return [line.strip() for line in read_prompts(path)]
    kind = "folder" if path.is_dir() else KINDS.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{path} is no file of captions: give a .txt, .tsv, metadata.jsonl or a folder")
    source = SOURCES[kind](DataSection(kind=kind, path=str(path)))  # type: ignore[arg-type]
    return [source.caption(i, 0) for i in range(len(source))]  # type: ignore[attr-defined,arg-type]
