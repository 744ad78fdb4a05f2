"""What the states of a word should tell: what the vision model's own encoder says there, and which words stand there.

A row is a word of a caption. The second needs no vision model: of the caption in plain words the word itself, the one
before and the one after, as 0 or 1 for each word of the vocabulary.

Which word is meant can be told from either (``Meanings``): it is the one whose own row lies in the same direction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..loop.word_places import places, same_words
from ..models import progress
from ..models.own_encoder import OwnEncoder
from .captions import Split, Text, normal

MOST, TWICE = 512, 2  # words of the vocabulary, and how often each must stand in the captions that are solved on
BESIDE = (0, -1, 1)
STATES, CAPTION, WORD, NEIGHBOURS = "states", "caption", "word", "neighbours"


class Meanings(NamedTuple):
    """What each word has in one part of the targets: of the teacher the mean over captions. places: word -> row."""

    places: Mapping[str, int]
    rows: Tensor  # [M C]


class Targets:
    """parts: what a row holds -> its channels. STATES: of the teacher, if any. CAPTION: WORD and NEIGHBOURS."""

    def __init__(self, split: Split, teacher: Mapping[str, Tensor] | None):
        counts = Counter(normal(word) for text in split.fit for word in text.plain.split())
        kept = sorted(word for word, n in counts.most_common(MOST) if n >= TWICE)
        self.index = {word: i for i, word in enumerate(kept)}
        self.teacher, size = teacher, len(kept)
        if not kept and not teacher:
            raise ValueError(
                f"no word comes twice in the captions of {split.name}, where spaces tell what a word is; "
                "name a --teacher"
            )
        self.parts = {
            CAPTION: slice(0, 3 * size),
            WORD: slice(0, size),
            NEIGHBOURS: slice(size, 3 * size),
        }
        if teacher:
            width = next(iter(teacher.values())).shape[1]
            self.parts |= {STATES: slice(3 * size, 3 * size + width)}
        new = {normal(word) for text in split.unseen for word in text.plain.split()} - split.known
        self.meanings = {WORD: Meanings(self.index, torch.eye(size))}
        if teacher:
            self.meanings[STATES] = self._by_teacher(split, teacher, new)
        self.meanings = {part: found for part, found in self.meanings.items() if found.places}

    def _by_teacher(self, split: Split, teacher: Mapping[str, Tensor], new: Collection[str]) -> Meanings:
        """Of the words of ``index`` by the captions that are solved on, of ``new`` ones by those that have them."""
        width = self.parts[STATES].stop - self.parts[STATES].start
        sums, counts = torch.zeros(len(self.index) + len(new), width), torch.zeros(len(self.index) + len(new), 1)
        index = self.index | {word: len(self.index) + i for i, word in enumerate(sorted(new))}
        for texts, words in ((split.fit, self.index), (split.unseen, new)):
            for text in texts:
                for word, state in zip(map(normal, text.plain.split()), teacher[text.plain], strict=True):
                    if word in words and state.isfinite().all():
                        sums[index[word]] += state
                        counts[index[word]] += 1
        met = [word for word, i in index.items() if counts[i]]  # the others the teacher has cut off
        rows = torch.tensor([index[word] for word in met], dtype=torch.long)
        return Meanings({word: i for i, word in enumerate(met)}, sums[rows] / counts[rows])

    def meant(self, part: str, text: Text) -> Tensor:
        """[W] long: for each word of the caption as it is said the row of its meaning, -1 for one that has none."""
        plain, index = text.plain.split(), self.meanings[part].places
        same = same_words(text.said.split(), plain)
        return torch.tensor([index.get(normal(plain[i]), -1) for i in same if plain], dtype=torch.long)

    @property
    def width(self) -> int:
        return max(part.stop for part in self.parts.values())

    def __call__(self, text: Text) -> Tensor:
        """[W width] float32, a row for each word of the caption as it is said; not finite where the teacher's text was
        cut."""
        plain = text.plain.split()
        same = same_words(text.said.split(), plain)
        size = len(self.index)
        found = torch.zeros(len(same), 3 * size)
        for row, word in enumerate(same):
            for place, offset in enumerate(BESIDE):
                at = word + offset
                if 0 <= at < len(plain) and (index := self.index.get(normal(plain[at]))) is not None:
                    found[row, place * size + index] = 1
        return torch.cat([found, self.teacher[text.plain][same]], dim=1) if self.teacher else found


@torch.no_grad()
def teacher_states(path: Path, texts: Sequence[Text], length: int, device: torch.device, batch: int = 32):
    """Plain caption -> what its own encoder says at each of its words [W C], float32 on the CPU."""
    own = OwnEncoder.load(path).to(device)
    check_offsets(own.tokenizer, str(path))
    captions = list(dict.fromkeys(text.plain for text in texts))
    found: dict[str, Tensor] = {}
    tokens = own.length(length)
    for start in progress.bar(range(0, len(captions), batch), desc="own encoder", leave=False):
        part = captions[start : start + batch]
        for text, states in zip(part, own(part, tokens).context, strict=True):
            found[text] = by_word(pooling(own.tokenizer, text, tokens), states).cpu()
    return found


def check_offsets(tokenizer: Any, name: str) -> None:
    if not tokenizer.is_fast:
        raise ValueError(
            f"the tokenizer of {name} cannot say which letters a token covers (it has no tokenizer.json), which a "
            "probe needs: take another"
        )


def pooling(tokenizer: Any, text: str, length: int) -> Tensor:
    """[W T] float32: for each word equal weights over its tokens, which sum to 1; none for one that was cut."""
    found = places(tokenizer, text, length)
    weights = torch.zeros(len(text.split()), length)
    for token, place in enumerate(found):
        if place.kind == "word":
            weights[place.word, token] = 1
    return weights / weights.sum(1, keepdim=True)  # 0 / 0 is not finite


def by_word(weights: Tensor, states: Tensor) -> Tensor:
    """weights [W T'], states [T D], T no less than count -> [W D] float32, not finite for a word without tokens."""
    return weights[:, : len(states)].to(states.device) @ states.float()
