"""The syntax of prompts: weights in parentheses, BREAK, prompts longer than a bridge takes, templates."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from comfy.sd1_clip import escape_important, token_weights, unescape_important

MARKS = re.compile(r"\bembedding:\S+|<lora:[^>]*>")  # of CLIP's prompts, and of other programs'
SHOWN = 60  # letters of a prompt that a notice repeats
BREAK = re.compile(r"\s*\bBREAK\b\s*")  # as AUTOMATIC1111's modules/prompt_parser.py reads it


@dataclass(frozen=True)
class Prompt:
    """A prompt without its marks, and the weight of each of its characters."""

    text: str
    weights: tuple[float, ...]

    @classmethod
    def plain(cls, text: str) -> Prompt:
        return cls(text, (1.0,) * len(text))

    @classmethod
    def weighted(cls, text: str) -> Prompt:
        """By the host's rules: ``(word)`` is 1.1 times its surroundings, ``(word:1.3)`` is 1.3, ``\\(`` is a ``(``."""
        parts = [(unescape_important(part), weight) for part, weight in token_weights(escape_important(text), 1.0)]
        for part, weight in parts:
            if not math.isfinite(weight):
                raise ValueError(f"the weight of {part!r} in the prompt is {weight}: take a number such as 1.2")
        return cls("".join(part for part, _ in parts), tuple(weight for part, weight in parts for _ in part))

    def part(self, start: int, stop: int | None = None) -> Prompt:
        """A piece of it, without the space where it was cut."""
        text = self.text[start:stop]
        begin = start + (len(text) - len(text.lstrip()) if start else 0)
        end = start + (len(text) if stop is None else len(text.rstrip()))
        return Prompt(self.text[begin:end], self.weights[begin:end])


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """How a prompt is read: weights: parentheses are weights; long_prompts: a key of LONG_PROMPTS; template: "" = the
    bridge's own."""

    weights: bool = False
    long_prompts: str = "cut"
    template: str = ""

    def recipe(self, tokenizer: Any, trained: Any) -> Any:
        """The core's PromptRecipe, of which as many tokens are heard as of the ``trained`` one. Raises ValueError for a
        template without exactly one {prompt}."""
        from ..lavi_core.language.tokens import cut_tokens

        if not self.template.strip():
            return trained
        recipe = replace(trained, template=self.template)
        longer = cut_tokens(tokenizer, recipe) - cut_tokens(tokenizer, trained)
        return replace(recipe, max_length=trained.max_length + longer)


class Piece(NamedTuple):
    """What the language model reads in one go."""

    prompt: Prompt
    recipe: Any  # the core's PromptRecipe
    tokens: Any  # the core's TokenBatch, of this one prompt


def read(encoder: Any, trained: Any, text: str, options: PromptOptions) -> list[Piece]:
    """Text -> pieces, by the core's ``encoder`` and the recipe that the bridge was trained with. Raises ValueError."""
    prompt = Prompt.weighted(text) if options.weights else Prompt.plain(text)
    if options.long_prompts != "chunk":
        prompt = _without_breaks(prompt)
    recipe = options.recipe(encoder.tokenizer, trained)
    return [
        Piece(part, whole, encoder.tokenize([part.text], whole))
        for part, whole in LONG_PROMPTS[options.long_prompts](encoder, recipe, prompt)
    ]


def _without_breaks(prompt: Prompt) -> Prompt:
    """BREAK is a mark for pieces, no word: where there are none, a space stands for it."""
    text, weights, at = "", (), 0
    for match in BREAK.finditer(prompt.text):
        text += f"{prompt.text[at : match.start()]} "
        weights += (*prompt.weights[at : match.start()], 1.0)
        at = match.end()
    return Prompt(text + prompt.text[at:], (*weights, *prompt.weights[at:]))


def _cut(_: Any, recipe: Any, prompt: Prompt) -> list[tuple[Prompt, Any]]:
    return [(prompt, recipe)]


def _chunk(encoder: Any, recipe: Any, prompt: Prompt) -> list[tuple[Prompt, Any]]:
    """Pieces that end at BREAK or, where the next word would not fit, at a space."""
    ends = [match.span() for match in BREAK.finditer(prompt.text)]
    starts, stops = [0, *(stop for _, stop in ends)], [*(start for start, _ in ends), None]
    parts = [prompt.part(start, stop) for start, stop in zip(starts, stops, strict=True)]
    found = [piece for part in parts if part.text.strip() for piece in _pieces(encoder, recipe, part)]
    return [(piece, recipe) for piece in found if piece.text.strip()] or [(Prompt.plain(""), recipe)]


def _pieces(encoder: Any, recipe: Any, prompt: Prompt) -> list[Prompt]:
    """``prompt`` is tokenised once, and cut where its tokens stand; a piece that is longer by itself, its first word
    being another token there, is cut once more."""
    report = encoder.tokenize([prompt.text], recipe).reports[0]
    if not report.cut:
        return [prompt]
    if any(span is None for span in report.cut_spans):
        raise ValueError(
            "this language model's tokenizer does not tell where its tokens stand, so a long prompt cannot be "
            "chunked; choose another way for long prompts or save the tokenizer as tokenizer.json"
        )
    fitting = [span for span in report.spans if span is not None]
    spans, room = [*fitting, *report.cut_spans], len(fitting)
    pieces, first = [], 0
    while first < len(spans):
        after, start = first + room, spans[first][0]
        if after >= len(spans):
            pieces.append(prompt.part(start))
            break
        stop = _last_space(prompt.text, start, spans[after][0]) or spans[after][0]
        piece = prompt.part(start, stop)
        if not room or not piece.text.strip():
            raise ValueError(
                f"pieces of {recipe.max_length} tokens have no room for a word beside the template "
                f"{recipe.template!r}; shorten the template"
            )
        pieces.append(piece)
        first = next((i for i in range(first + 1, len(spans)) if spans[i][0] >= stop), len(spans))
    rows = encoder.tokenize([piece.text for piece in pieces], recipe).reports
    return [part for piece, row in zip(pieces, rows, strict=True) for part in _whole(encoder, recipe, piece, row.cut)]


def _whole(encoder: Any, recipe: Any, piece: Prompt, cut: int) -> list[Prompt]:
    return _pieces(encoder, recipe, piece) if cut else [piece]


def _last_space(text: str, start: int, stop: int) -> int | None:
    """Where the last word that ends before ``stop`` ends; None where there is but one."""
    spaces = [match.start() for match in re.finditer(r"\s+", text[start : stop + 1]) if match.start()]
    return start + spaces[-1] if spaces else None


def _full_length(encoder: Any, recipe: Any, prompt: Prompt) -> list[tuple[Prompt, Any]]:
    """As many tokens as the prompt has, where the language model has positions for them."""
    report = encoder.tokenize([prompt.text], recipe).reports[0]
    if not report.cut:
        return [(prompt, recipe)]
    length = report.used + report.cut
    return [(prompt, replace(recipe, max_length=min(length, encoder.positions or length)))]


LONG_PROMPTS: dict[str, Callable[[Any, Any, Prompt], list[tuple[Prompt, Any]]]] = {
    "cut": _cut,
    "chunk": _chunk,
    "full length": _full_length,
}


def cut_off(pieces: list[Piece]) -> str:
    """What of a prompt is not heard, in a sentence; "" = nothing."""
    report = pieces[0].tokens.reports[0]
    lost = _shown(report.cut_text)
    return f"{report.cut} tokens of the prompt are cut off and not heard: {lost!r}" if report.cut else ""


def _shown(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def unknown(tokenizer: Any, pieces: list[Piece]) -> str:
    """What of a prompt the language model has no token for, in a sentence; "" = nothing, or not known."""
    from ..lavi_core.language.unknown_words import unknown_words

    found = [word for piece in pieces for word in unknown_words(tokenizer, piece.tokens, 0, piece.prompt.text)]
    some = ", ".join(repr(_shown(text)) for text in dict.fromkeys(found[:8])) + (", …" if len(found) > 8 else "")
    return f"the language model has no token for {some}, and hears one and the same there" if found else ""


def unasked(queries: Any, pieces: list[Piece]) -> str:
    """The same of what an adapter does not ask with, in each piece; "" = nothing. queries: the core's."""
    lost = [text for piece in pieces if (text := queries.cut_off(piece.prompt.text))] if queries is not None else []
    return "; ".join([*lost, "long_prompts = chunk begins anew at each BREAK"]) if lost else ""


def as_written(text: str, options: PromptOptions, stock: bool = False) -> list[str]:
    """A sentence for each kind of mark in ``text`` that is none here. stock: the node is one of the host's."""
    from ..lavi_core.prompt import WEIGHT

    weight, mark = None if options.weights else WEIGHT.search(text), MARKS.search(text)
    where = "in Bridge Text Encode " if stock else ""
    found = []
    if weight:
        found.append(f"{weight[0]} is read as it is written, parentheses and all: turn weights on {where}to weigh it")
    if mark:
        found.append(f"{mark[0]} is read as it is written: a bridge hears words, no embeddings, and LoRAs have nodes")
    if options.long_prompts != "chunk" and BREAK.search(text):
        found.append(f"BREAK is left out: it begins a piece where long_prompts {where}is chunk")
    return found


def describe(pieces: list[Piece], trained: Any) -> str:
    """What became of a prompt: pieces, tokens, weights, template."""
    from ..lavi_core.prompt import PROMPT

    reports = [piece.tokens.reports[0] for piece in pieces]
    if len(pieces) == 1:
        line = str(reports[0])
    else:
        used, padded = (sum(getattr(report, what) for report in reports) for what in ("used", "padded"))
        line = f"{len(pieces)} pieces, {used} tokens, {padded} padding"
    recipe = pieces[0].recipe
    if recipe.max_length != trained.max_length:
        line += f"; heard at {recipe.max_length} tokens, the bridge was trained with {trained.max_length}"
    weighted = {weight for piece in pieces for weight in piece.prompt.weights} - {1.0}
    if weighted:
        line += f"; weights from {min(weighted):g} to {max(weighted):g}"
    if recipe.template != trained.template:
        return f"{line}\ntemplate: {recipe.template!r}; the bridge was trained with {trained.template!r}"
    return line if trained.template == PROMPT else f"{line}\ntemplate: {trained.template!r}"
