"""Prompts -> the rows that AnimaT5Free's conditioner hears, by letters and a lexicon: ``HiddenStates.queries``.

As in its code at commit 872b753 (modeling_anima_t5free.py), which the published files are read with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..config import AdapterConfig
from ..segmenter import Segmenter
from .prompt_weights import spans
from .query_tokenizer import Asking, Query
from .tokens import Span, TokenBatch

SEGMENTER = "segmenter."  # before the names of its weights among an adapter's
END: Span = (0, 0)  # the row behind the last, which stands nowhere
MOST = 4096  # rows
UNREADABLE = (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)
PARTS = ("config", "lexicon")  # of the text that a bridge holds, each the text of a JSON file


class Settings(NamedTuple):
    """Of the conditioner's config. places, lengths: buckets from a number up to another, for the place of a row and for
    the number of rows; constants: the names of their pairs in the order of the adapter's ``constants``. layers: hidden
    states that it hears."""

    places: list[Span]
    lengths: list[Span]
    constants: list[str]
    longest: int
    layers: tuple[int, ...]
    heads: int

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Settings:
        """What is not in it is the project's own default. Its sizes lie at the top, or in tables of their own. Raises
        ValueError, KeyError or another error of a wrong type for what is no such config."""
        inner = config.get("conditioner") or {}
        flat = {**config, **{name: value for name, value in inner.items() if value}}
        names = (inner.get("c0") or {}).get("mu_keys") or config["mu_keys"]
        found = cls(
            _buckets(flat.get("pos_buckets") or ((0, 20), (20, 40), (40, 80), (80, 160), (160, 512))),
            _buckets(flat.get("len_buckets") or ((0, 80), (80, 150), (150, 512))),
            [str(name) for name in names],
            int(flat.get("max_rows", 512)),
            tuple(map(int, flat.get("qwen_layers", (16, 22)))),
            int((inner.get("refiner") or {}).get("heads", config.get("refiner_heads", 8))),
        )
        if not 1 < found.longest <= MOST or isinstance(names, str):
            raise ValueError(f"max_rows is {found.longest}, mu_keys {names!r}")
        return found


class RowCutter(Asking):
    """Words are what stands between spaces. The lexicon says where a known one is cut, and before which of them rows of
    its first letter alone go; another one is cut by the segmenter, where the prompt is ASCII, else not at all."""

    unit = "rows cut from the prompt's letters"

    def __init__(self, text: str, weights: Mapping[str, Tensor], where: str = "the bridge"):
        """text: JSON of ``PARTS``. weights: of an adapter, the segmenter's among them. where: for messages. Raises
        ValueError for a text that is something else, and for one of another number of constants than the adapter."""
        try:
            config, lexicon = (json.loads(json.loads(text)[part]) for part in PARTS)
            self.settings = Settings.read(config)
            self._lexicon = {word: _cuts(word, entry) for word, entry in lexicon.items()}
        except UNREADABLE as error:
            raise ValueError(
                f"what prompts are cut into rows by in {where} is not readable ({type(error).__name__}: {error}); "
                "fetch or save it again"
            ) from None
        self.json, self.longest = text, self.settings.longest
        self.vocabulary, known = len(self.settings.constants), len(weights["constants"])
        if self.vocabulary != known:
            raise ValueError(f"{where} names {self.vocabulary} constants of rows, its adapter has {known}")
        self._constants = {key: number for number, key in enumerate(self.settings.constants)}
        mine = {name: tensor.float() for name, tensor in weights.items() if name.startswith(SEGMENTER)}
        with torch.device("meta"):  # the file has every weight
            self._segmenter = Segmenter().eval()
        state = {name.removeprefix(SEGMENTER): tensor for name, tensor in mine.items()}
        self._segmenter.load_state_dict(state, assign=True)

    def limited(self, adapter: AdapterConfig, heard: int | None, beside: int = 0) -> None:
        """As ``QueryTokenizer.limited``: rows are cut at the end of a prompt, the one behind the last is kept."""
        if heard is not None:
            self.longest = max(1, min(self.settings.longest, heard - beside))

    def __call__(self, prompts: Sequence[str], tokens: TokenBatch) -> Tensor:
        """-> [B R 3] long, see ``row_refiner``, -1 behind a shorter prompt. Of a blank prompt one row without states,
        so that it says zeros. tokens: of the same prompts. Raises ValueError for tokens whose places are not known."""
        rows = [self._places(prompt, tokens, number) for number, prompt in enumerate(prompts)]
        found = torch.full((len(rows), max(map(len, rows)), 3), -1)
        for row, places in zip(found, rows, strict=True):
            row[: len(places)] = torch.tensor(places)
        return found

    def widest(self, tokens: TokenBatch) -> Tensor:
        """As many rows as there can be, for a measure of memory."""
        return tokens.ids.new_tensor([0, 1, 0]).expand(len(tokens.ids), self.longest or self.settings.longest, 3)

    def read(self, prompt: str) -> list[Query]:
        """One prompt's rows."""
        cut = self._cut(prompt)[0]
        constants = self._constants_of(len(cut))
        return [
            Query(constant, *(("(end)", None) if span == END else (prompt[slice(*span)], span)))
            for span, constant in zip(cut, constants, strict=True)
        ]

    def _lost(self, prompt: str) -> list[Span]:
        return self._cut(prompt)[1]

    def _places(self, prompt: str, tokens: TokenBatch, number: int) -> list[tuple[int, int, int]]:
        if not prompt.strip():
            return [(0, 0, 0)]
        heard, rows = tokens.reports[number], slice(number, number + 1)
        keep = None if tokens.keep is None else tokens.keep[rows]
        found = spans(TokenBatch(tokens.ids[rows], tokens.mask[rows], keep, tokens.reports[rows]))
        known = [(place, span) for place, span in enumerate(found) if span is not None]
        if not known and not any(heard.cut_spans):
            raise ValueError(
                "this language model's tokenizer does not tell where its tokens stand in the prompt, so no rows can be "
                "made of their states; save the tokenizer as tokenizer.json"
            )
        cut = self._cut(prompt)[0]
        until = heard.cut_spans[0][0] if heard.cut and heard.cut_spans[0] else len(prompt) + 1
        states = (_states_of(span, known) if known and span[0] < until else (0, 0) for span in cut)
        return [(*one, constant) for one, constant in zip(states, self._constants_of(len(cut)), strict=True)]

    def _constants_of(self, count: int) -> list[int]:
        length = _bucket(count, self.settings.lengths)
        names = [f"{_named(_bucket(row, self.settings.places))}L{_named(length)}" for row in range(count)]
        absent = next((name for name in names if name not in self._constants), None)
        if absent is not None:
            raise ValueError(f"the bridge's adapter has no constant {absent}, which a prompt of {count} rows asks for")
        return [self._constants[name] for name in names]

    def _cut(self, prompt: str) -> tuple[list[Span], list[Span]]:
        """The spans of the rows, the end among them, and those that there is no room for."""
        if not prompt.strip():
            return [END], []
        found: list[Span] = []
        starts: list[int] | None = None
        begin = 0
        for word in prompt.split(" "):
            stop = begin + len(word)
            if word:
                ahead, cuts = self._lexicon.get(word, (0, None))
                if cuts is None:
                    starts = self._starts(prompt) if starts is None else starts
                    inner = [at for at in starts if begin < at < stop]
                else:
                    inner = [begin + at for at in cuts]
                edges = [begin, *inner, stop]
                found += [(begin, begin + 1)] * ahead + list(pairwise(edges))
            begin = stop + 1
        room = (self.longest or self.settings.longest) - 1
        return [*found[:room], END], found[room:]

    def _starts(self, prompt: str) -> list[int]:
        """Where the segmenter has rows begin."""
        if not prompt or not prompt.isascii():
            return []
        with torch.inference_mode():
            letters = torch.tensor([list(prompt.encode())], device=self._segmenter.emb.weight.device)
            logits = self._segmenter(letters)[0]
        return logits.sigmoid().gt(0.5).nonzero().flatten().tolist()


def _states_of(span: Span, known: Sequence[tuple[int, Span]]) -> tuple[int, int]:
    """First and stop of the states of the tokens that a span overlaps, else of the one whose middle is nearest."""
    begin, stop = span
    over = [place for place, (first, last) in known if begin < stop and first < stop and last > begin]
    if not over:
        middle = (begin + stop) / 2 if begin < stop else begin
        over = [min(known, key=lambda one: abs(sum(one[1]) / 2 - middle))[0]]
    return over[0], over[-1] + 1


def _cuts(word: str, entry: Any) -> tuple[int, tuple[int, ...]]:
    """Rows ahead and places of cuts within a word, of an entry [[ahead, [cut, ...]], ...], of which the first counts.
    Raises ValueError for more rows than a prompt can have."""
    ahead, cuts = int(entry[0][0]), tuple(map(int, entry[0][1]))
    if not 0 <= ahead <= MOST:
        raise ValueError(f"the word {word!r} has {ahead} rows before it")
    return ahead, cuts


def _buckets(pairs: Any) -> list[Span]:
    return [(int(first), int(stop)) for first, stop in pairs]


def _bucket(number: int, buckets: Sequence[Span]) -> Span:
    return next((bucket for bucket in buckets if bucket[0] <= number < bucket[1]), buckets[-1])


def _named(bucket: Span) -> str:
    return f"[{bucket[0]},{bucket[1]})"
