"""The second tokenizer of a bridge whose adapter asks with token ids: prompts -> ``HiddenStates.queries``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..config import AdapterConfig
from .tokens import Span, TokenBatch

FILE = "tokenizer.json"


class Query(NamedTuple):
    """span: where the token stands in the prompt; None = it is one that the tokenizer adds."""

    id: int
    text: str
    span: Span | None


class Asking:
    """What of a prompt an adapter asks with, and what is too much. unit: of it, in words; longest: the most that it
    asks with, None = any number. A kind says which places of a prompt are lost (``_lost``)."""

    unit: str
    longest: int | None = None

    def _lost(self, prompt: str) -> list[Span]:
        raise NotImplementedError

    def cut_off(self, prompt: str) -> str:
        """What of a prompt nothing is asked with, in a sentence; "" = nothing."""
        lost = self._lost(prompt)
        if not lost:
            return ""
        return (
            f"{len(lost)} {self.unit.split()[0]} of the prompt are cut off and not heard, the bridge asks with "
            f"{self.longest} at most: {prompt[lost[0][0] :]!r}"
        )

    def cut_text(self, prompt: str) -> str:
        """From where on nothing is asked with; "" = all is."""
        lost = self._lost(prompt)
        return prompt[lost[0][0] :] if lost else ""

    def count_cut(self, prompt: str) -> int:
        """With how much of it nothing is asked."""
        return len(self._lost(prompt))


class QueryTokenizer(Asking):
    """A ``tokenizer.json`` as it is, its own special tokens put in, without its padding and its own truncation."""

    unit = "tokens of the second tokenizer"

    def __init__(self, json: str, where: str = "the bridge"):
        """json: the text of the file. where: for messages. Raises ValueError for what is no tokenizer, and for one that
        makes no token of an empty prompt, with which nothing can be asked."""
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_str(json)
        except Exception as error:  # its own class is none of Python's that could be named
            raise ValueError(f"the tokenizer of the queries in {where} is not readable ({error})") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.json = json
        self.vocabulary = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        if not self.read(""):
            raise ValueError(
                f"the tokenizer of the queries in {where} gives the empty prompt no token, so that it asks nothing: "
                "take one that adds an end token, as T5's does"
            )

    @classmethod
    def load(cls, path: str | Path) -> QueryTokenizer:
        """A tokenizer.json, or the folder that has one. Raises ValueError where there is none."""
        path = Path(path)
        file = path / FILE if path.is_dir() else path
        if not file.is_file():
            raise ValueError(f"there is no {file}, the tokenizer of the queries: name a {FILE} or its folder")
        try:
            return cls(file.read_text(encoding="utf-8"), str(file))
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not UTF-8 text ({error})") from None

    def limited(self, adapter: AdapterConfig, heard: int | None, beside: int = 0) -> None:
        """From now on cut a prompt of more ids at its end, those that it adds kept: of more than the
        adapter asks with, or than are left of those that the vision model has ``heard`` at most (None = any number),
        ``beside`` of which are an own encoder's."""
        limits = [limit for limit in (adapter.tokens, None if heard is None else heard - beside) if limit is not None]
        self.longest = min(limits, default=None)
        if self.longest is not None:
            self._tokenizer.enable_truncation(self.longest)

    def __call__(self, prompts: Sequence[str], tokens: TokenBatch | None = None) -> Tensor:
        """-> [B Q] long, -1 behind a shorter prompt; see ``limited``. tokens: not looked at here."""
        rows = [self._tokenizer.encode(prompt).ids for prompt in prompts]
        queries = torch.full((len(rows), max(map(len, rows))), -1)
        for row, ids in zip(queries, rows, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        return queries

    def widest(self, tokens: TokenBatch) -> Tensor:
        """As many as there can be beside these tokens, for a measure of memory."""
        return torch.zeros_like(tokens.ids[:, : self.longest])

    def read(self, prompt: str) -> list[Query]:
        """One prompt's, in words."""
        coded = self._tokenizer.encode(prompt)
        added = zip(coded.ids, coded.tokens, coded.offsets, coded.special_tokens_mask, strict=True)
        return [Query(id_, text, None if special else span) for id_, text, span, special in added]

    def _lost(self, prompt: str) -> list[Span]:
        rest = self._tokenizer.encode(prompt).overflowing
        rows = (zip(part.offsets, part.special_tokens_mask, strict=True) for part in rest)
        return [span for row in rows for span, special in row if not special]


def check_queries(adapter: AdapterConfig, queries: QueryTokenizer) -> None:
    """Raise ValueError for a tokenizer with more ids than the adapter has vectors for."""
    if adapter.vocabulary is not None and queries.vocabulary > adapter.vocabulary:
        raise ValueError(
            f"the tokenizer of the queries has {queries.vocabulary} ids, the adapter knows {adapter.vocabulary}: it is "
            "another's; name the one that the adapter was trained with"
        )
