"""Prompts -> token ids, by the bridge's recipe and never by a tokenizer's own defaults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..prompt import PROMPT, PromptRecipe
from .special_tokens import encode_as_text, holds_special

Span = tuple[int, int]  # start and stop, in the characters of a prompt
_ANY = 1 << 20  # tokens


@dataclass(frozen=True)
class PromptReport:
    """What became of one prompt. used: real tokens; cut: prompt tokens cut off; padded: padding tokens.

    spans: where each of the used tokens stands in the prompt; None = it is of the template, special, or the tokenizer
    does not tell. cut_spans: the same of those cut off.
    """

    used: int
    cut: int
    padded: int
    cut_text: str = ""
    spans: tuple[Span | None, ...] = field(default=(), compare=False, repr=False)
    cut_spans: tuple[Span | None, ...] = field(default=(), compare=False, repr=False)

    def __str__(self) -> str:
        line = f"{self.used} tokens, {self.padded} padding"
        return f"{line}; {self.cut} prompt tokens were cut off: {self.cut_text!r}" if self.cut else line


class TokenBatch(NamedTuple):
    """What a language model reads."""

    ids: Tensor  # [B T] long
    mask: Tensor  # [B T] bool, True = a real token, the template's included
    keep: Tensor | None  # [B T] bool, False = a template token, to be cut from the states; None = nothing is cut
    reports: tuple[PromptReport, ...]
    queries: Tensor | None = None  # see ``HiddenStates``

    def to(self, device: torch.device | str) -> TokenBatch:
        keep, queries = (None if part is None else part.to(device) for part in (self.keep, self.queries))
        return TokenBatch(self.ids.to(device), self.mask.to(device), keep, self.reports, queries)

    def trimmed(self, recipe: PromptRecipe, multiple: int = 8) -> TokenBatch:
        """Without the padding that all rows end in, to a ``multiple`` of tokens, where nothing hears padding: both
        models and the adapter are given the mask and it lies on the right. Else the batch itself.
        """
        masked = recipe.language_mask and recipe.vision_mask and recipe.adapter_mask
        if not (masked and recipe.padding_side == "right"):
            return self
        width = -(-int(self.mask.sum(1).max()) // multiple) * multiple
        keep = None if self.keep is None else self.keep[:, :width]
        return TokenBatch(self.ids[:, :width], self.mask[:, :width], keep, self.reports, self.queries)


class _Token(NamedTuple):
    id: int
    template: bool  # belongs to the template's text
    droppable: bool  # belongs to the prompt alone
    before: bool  # of the template, before the prompt
    span: Span | None  # where it stands in the prompt; None = not there, or unknown


@dataclass(frozen=True)
class _Row:
    tokens: list[_Token]
    cut: tuple[_Token, ...] = ()
    cut_text: str = ""


def tokenize(tokenizer: Any, prompts: Sequence[str], recipe: PromptRecipe) -> TokenBatch:
    """Render, tokenise, cut to ``recipe.max_length`` and pad.

    Special tokens in a prompt ("</s>") are text; those of the template are control.
    Truncation takes tokens off the end of the prompt; the template and the special tokens stay.
    Raises ValueError if there is no prompt, or if the template leaves no room for one.
    """
    if isinstance(prompts, str) or not prompts:
        raise ValueError(f"a list of at least one prompt is needed, got {prompts!r}")
    pad = pad_id(tokenizer, recipe)
    split = _split_by_offsets if tokenizer.is_fast else _split_by_probes
    texts = [prompt.strip() if recipe.strip else prompt for prompt in prompts]
    rows = [_truncate(split(tokenizer, text, recipe), text, tokenizer, recipe) for text in texts]
    width = recipe.max_length if recipe.padding == "max_length" else max(1, *(len(r.tokens) for r in rows))
    left = recipe.padding_side == "left"

    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    keep = torch.ones(len(rows), width, dtype=torch.bool)
    reports = []
    for i, row in enumerate(rows):
        n = len(row.tokens)
        place = slice(width - n, width) if left else slice(0, n)
        ids[i, place] = torch.tensor([t.id for t in row.tokens], dtype=torch.long)
        mask[i, place] = True
        cut = [t.before if recipe.cut_template == "before" else t.template for t in row.tokens]
        keep[i, place] = ~torch.tensor(cut, dtype=torch.bool)
        if n == 0:  # no token at all ("" without special tokens)
            mask[i, -1 if left else 0] = recipe.no_token == "padding"
        elif not (keep[i] & mask[i]).any():  # an empty prompt in a template: its last token stands for it
            keep[i, place.stop - 1] = True
        space = len(prompts[i]) - len(prompts[i].lstrip()) if recipe.strip else 0
        spans, lost = (tuple(_moved(t.span, space) for t in some) for some in (row.tokens, row.cut))
        reports.append(PromptReport(n, len(row.cut), width - n, row.cut_text, spans, lost))
    cuts = recipe.cut_template and recipe.template != PROMPT
    return TokenBatch(ids, mask, keep if cuts else None, tuple(reports))


def _moved(span: Span | None, by: int) -> Span | None:
    return None if span is None else (span[0] + by, span[1] + by)


def cut_tokens(tokenizer: Any, recipe: PromptRecipe) -> int:
    """How many tokens of the template ``cut_template`` takes from the states of a prompt."""
    if not recipe.cut_template:
        return 0
    keep = tokenize(tokenizer, ["a"], replace(recipe, padding="longest", max_length=_ANY)).keep
    return 0 if keep is None else int((~keep).sum())


def pad_id(tokenizer: Any, recipe: PromptRecipe) -> int:
    """The id of the padding token, by the recipe's rule."""
    if recipe.pad_token is not None:
        found = tokenizer.convert_tokens_to_ids(recipe.pad_token)
        if found is None or (found == tokenizer.unk_token_id and recipe.pad_token != tokenizer.unk_token):
            raise ValueError(f"the recipe pads with {recipe.pad_token!r}, which is no token of this language model")
        return found
    for found in (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id):
        if found is not None:
            return found
    return 0


def _split_by_offsets(tokenizer: Any, prompt: str, recipe: PromptRecipe) -> list[_Token]:
    """Tokens told apart by where they stand in the text. One that straddles a border belongs to the prompt, but is not
    dropped where it holds a piece of the suffix."""
    text = recipe.render(prompt)
    begin = recipe.template.index(PROMPT)
    end = begin + len(prompt)
    if holds_special(tokenizer, prompt):
        coded = encode_as_text(tokenizer, (text[:begin], text[end:]), prompt, recipe.add_special_tokens)
    else:
        coded = _encode(tokenizer, text, recipe, return_offsets_mapping=True)
    tokens = []
    for token, (start, stop), special in zip(
        coded["input_ids"], coded["offset_mapping"], coded["special_tokens_mask"], strict=True
    ):
        before = begin > 0 and stop <= begin
        after = end < len(text) and start >= end
        template = not special and (before or after or (not prompt and recipe.template != PROMPT))
        droppable = not special and not template and stop <= end
        span = None if special or template else (max(start, begin) - begin, min(stop, end) - begin)
        tokens.append(_Token(token, template, droppable, template and before, span))
    return tokens


def _split_by_probes(tokenizer: Any, prompt: str, recipe: PromptRecipe) -> list[_Token]:
    """For tokenizers without offsets: what different prompts have in common at both ends is the template."""
    typed = holds_special(tokenizer, prompt)
    if typed and holds_special(tokenizer, recipe.template):
        raise ValueError(
            "the prompt holds a special token, which this language model's tokenizer cannot tell from the template's; "
            "take it out, or save the tokenizer as tokenizer.json"
        )
    coded = _encode(tokenizer, recipe.render(prompt), recipe, **({"split_special_tokens": True} if typed else {}))
    ids, special = coded["input_ids"], coded["special_tokens_mask"]
    probes = [_encode(tokenizer, recipe.render(p), recipe)["input_ids"] for p in ("a", "7", "Z?")]
    prefix = _common([ids, *probes])
    suffix = min(_common([row[::-1] for row in (ids, *probes)]), len(ids) - prefix)
    tokens = []
    for i, (token, is_special) in enumerate(zip(ids, special, strict=True)):
        outside = i < prefix or i >= len(ids) - suffix
        template = outside and not is_special
        tokens.append(_Token(token, template, not outside and not is_special, template and i < prefix, None))
    return tokens


def _common(rows: list[list[int]]) -> int:
    """How many leading entries all rows share."""
    count = 0
    for column in zip(*rows, strict=False):
        if len(set(column)) > 1:
            break
        count += 1
    return count


def _encode(tokenizer: Any, text: str, recipe: PromptRecipe, **more: bool) -> Any:
    return tokenizer(
        text,
        add_special_tokens=recipe.add_special_tokens,
        padding=False,
        truncation=False,
        return_special_tokens_mask=True,
        verbose=False,
        **more,
    )


def _truncate(tokens: list[_Token], prompt: str, tokenizer: Any, recipe: PromptRecipe) -> _Row:
    surplus = len(tokens) - recipe.max_length
    if surplus <= 0:
        return _Row(tokens)
    droppable = [i for i, t in enumerate(tokens) if t.droppable]
    if surplus > len(droppable):
        raise ValueError(
            f"the prompt template and the special tokens take {len(tokens) - len(droppable)} tokens, "
            f"the bridge hears {recipe.max_length} (max_length): shorten the template, or train with a larger one"
        )
    gone = droppable[-surplus:]
    dropped = set(gone)
    lost = tuple(tokens[i] for i in gone)
    if lost[0].span is not None:
        text = prompt[lost[0].span[0] :].strip()
    else:
        text = tokenizer.decode([token.id for token in lost])
    return _Row([t for i, t in enumerate(tokens) if i not in dropped], lost, text)
