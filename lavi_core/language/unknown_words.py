"""Words that a language model has no token for: BERT, T5 and their like hear one and the same in the place of each."""

from __future__ import annotations

from typing import Any

from .tokens import TokenBatch


def unknown_id(tokenizer: Any) -> int | None:
    """The id of what is no word to a tokenizer; None where it knows all, or has no id for that alone, as CLIP's, whose
    unknown is its end."""
    others = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id)
    return None if tokenizer.unk_token_id in others else tokenizer.unk_token_id


def unknown_words(tokenizer: Any, tokens: TokenBatch, row: int, text: str) -> list[str]:
    """What of the prompt ``text``, the one of this row, is read as the unknown token; [] where the tokenizer does not
    tell where its tokens stand."""
    ids, spans = tokens.ids[row][tokens.mask[row]].tolist(), tokens.reports[row].spans
    unknown = unknown_id(tokenizer)
    if unknown is None or unknown not in ids or len(spans) != len(ids):
        return []
    return [text[slice(*span)] for i, span in zip(ids, spans, strict=True) if i == unknown and span is not None]
