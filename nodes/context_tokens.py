"""Which token each vector of a context comes from, and Bridge Tokens, the node that lists them."""

from __future__ import annotations

import re
import string
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, NamedTuple

from comfy_api.latest import io, ui
from torch import Tensor

from .prompt_syntax import Piece
from .schema import schema

CONTEXT_TOKENS = "lavi_bridge"  # the key under which a Hearing travels in a conditioning

SCRIPTS = "\u3040-\u30ff\u3400-\u9fff"  # Japanese and Chinese, which put no spaces between words
WORD = re.compile(f"[{SCRIPTS}]|[^\\s{SCRIPTS}]+")


class ContextToken(NamedTuple):
    """One vector of a context. kind: prompt, unknown (no token of the language model's), template, special, padding or
    own (of an adapter that gives its own) tokens, or clip (of the vision model's own encoder, heard beside the bridge).
    span: in the piece's text, where known."""

    text: str
    kind: str
    weight: float
    piece: int
    span: tuple[int, int] | None


@dataclass(frozen=True)
class ContextTokens:
    """What each vector of a context is, the texts of its pieces, and what of each was cut off. No sequence: nodes of
    the host walk through all sequences in a conditioning, and a text is one without end."""

    tokens: tuple[ContextToken, ...]
    texts: tuple[str, ...]
    cut: tuple[str, ...]

    def padded(self, length: int, side: str) -> ContextTokens:
        """With zeros for the vectors that are put in on this side."""
        zeros = (ContextToken("", "padding", 1.0, 0, None),) * (length - len(self.tokens))
        return replace(self, tokens=zeros + self.tokens if side == "left" else self.tokens + zeros)

    def beside(self, own: tuple[ContextToken, ...], place: str) -> ContextTokens:
        """With the vectors of an own encoder before or after them."""
        return replace(self, tokens=own + self.tokens if place == "before" else self.tokens + own)

    def words(self) -> list[tuple[str, list[int]]]:
        """The words of the prompt, in its order, and the vectors of each."""
        found: dict[tuple[int, int], tuple[str, list[int]]] = {}
        for i, token in enumerate(self.tokens):
            if token.kind not in ("prompt", "unknown"):
                continue
            word, start = token.text, -i  # where the tokenizer does not tell, each token is a word
            if token.span is not None:
                text = self.texts[token.piece]
                lead = next((at for at in range(*token.span) if not text[at].isspace()), token.span[0])
                match = next((m for m in WORD.finditer(text) if m.start() <= lead < m.end()), None)
                word, start = (match[0], match.start()) if match else ("", 0)
            if any(letter.isalnum() for letter in word):
                found.setdefault((token.piece, start), (word.strip(string.punctuation), []))[1].append(i)
        return list(found.values())


def context_tokens(encoder: Any, pieces: list[Piece], masks: list[Tensor], weights: list[Tensor]) -> ContextTokens:
    """masks: of each piece, [K] bool, True = the vision model hears it. weights: [K] of each piece."""
    from ..lavi_core.language.prompt_weights import kept_positions, spans
    from ..lavi_core.language.unknown_words import unknown_id

    special, no_word = set(encoder.tokenizer.all_special_ids), unknown_id(encoder.tokenizer)
    tokens: list[ContextToken] = []
    for number, (piece, mask, weighted) in enumerate(zip(pieces, masks, weights, strict=True)):
        positions, found = kept_positions(piece.tokens), spans(piece.tokens)
        tells = any(piece.tokens.reports[0].spans)
        for position, span, heard, weight in zip(positions, found, mask.tolist(), weighted.tolist(), strict=True):
            if not heard:
                continue
            token_id = int(piece.tokens.ids[0, position])
            text = piece.prompt.text[slice(*span)] if span else encoder.tokenizer.convert_ids_to_tokens(token_id)
            if not piece.tokens.mask[0, position]:
                kind = "padding"
            elif span and token_id == no_word:
                kind = "unknown"
            elif token_id in special:
                kind = "special"
            else:
                kind = "prompt" if span or not tells else "template"
            tokens.append(ContextToken(str(text), kind, weight, number, span))
    cut = (piece.tokens.reports[0].cut_text for piece in pieces)
    return ContextTokens(tuple(tokens), tuple(piece.prompt.text for piece in pieces), tuple(cut))


def own_tokens(count: int, pieces: list[Piece]) -> ContextTokens:
    """Of an adapter that gives ``count`` tokens of its own for each piece, none of which is one of the prompt's."""
    tokens = (ContextToken("", "own", 1.0, number, None) for number in range(len(pieces)) for _ in range(count))
    cut = (piece.tokens.reports[0].cut_text for piece in pieces)
    return ContextTokens(tuple(tokens), tuple(piece.prompt.text for piece in pieces), tuple(cut))


def asked_tokens(queries: Any, pieces: list[Piece], weights: list[Tensor]) -> ContextTokens:
    """Of an adapter that asks with these, the core's ``Queries``. weights: of each piece's."""
    tokens = []
    for number, (piece, weighted) in enumerate(zip(pieces, weights, strict=True)):
        text = piece.prompt.text
        for query, weight in zip(queries.read(text), weighted.tolist(), strict=True):
            kind, name = ("special", query.text) if query.span is None else ("prompt", text[slice(*query.span)])
            tokens.append(ContextToken(name, kind, weight, number, query.span))
    cut = (queries.cut_text(piece.prompt.text) or piece.tokens.reports[0].cut_text for piece in pieces)
    return ContextTokens(tuple(tokens), tuple(piece.prompt.text for piece in pieces), tuple(cut))


def find_context_tokens(conditioning: Any) -> tuple[Tensor, ContextTokens]:
    """The first context of a conditioning, [1 T C], and what its vectors are. Raises ValueError where nobody knows."""
    for context, more in conditioning:
        if CONTEXT_TOKENS in more:
            return context, more[CONTEXT_TOKENS]
    raise ValueError(
        "this conditioning does not say which token each of its vectors is: connect that of Bridge Text Encode, or of "
        "CLIP Text Encode on a bridge's CLIP"
    )


def listing(conditioning: Any) -> str:
    """A table for each context of a conditioning: of parts that were combined, each under its number. Raises ValueError
    where none of them is a bridge's."""
    find_context_tokens(conditioning)
    tables = [
        table(context, more[CONTEXT_TOKENS])
        if CONTEXT_TOKENS in more
        else f"{context.shape[1]} vectors of which nobody says what they are: no bridge's"
        for context, more in conditioning
    ]
    if len(tables) == 1:
        return tables[0]
    return "\n\n".join(f"PART {number} of {len(tables)}\n{one}" for number, one in enumerate(tables, 1))


def table(context: Tensor, listed: ContextTokens) -> str:
    """A line a token: position, text, kind, weight, norm. A run of padding is one line."""
    norms = context[0].float().norm(dim=-1).tolist()
    lines = [f"{'':>7}  {'token':<22} {'kind':<8} {'weight':>6} {'norm':>8}"]
    for padding, run in groupby(range(len(listed.tokens)), lambda i: listed.tokens[i].kind == "padding"):
        rows = list(run)
        if padding:
            at, mean = f"{rows[0]}-{rows[-1]}", sum(norms[i] for i in rows) / len(rows)
            lines.append(f"{at:>7}  {f'{len(rows)} x padding':<22} {'padding':<8} {1:>6.2f} {mean:>8.2f} (mean)")
            continue
        for i in rows:
            token = listed.tokens[i]
            shown = repr(token.text)[1:-1]
            lines.append(f"{i:>7}  {shown:<22} {token.kind:<8} {token.weight:>6.2f} {norms[i]:>8.2f}")
    if len(norms) > len(listed.tokens):
        lines.append(f"and {len(norms) - len(listed.tokens)} vectors of another conditioning")
    lines += [f"CUT OFF  {text!r}" for text in listed.cut if text]
    return "\n".join(lines)


class BridgeTokens(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LaViBridgeTokens",
            display_name="Bridge Tokens (LaVi-Bridge)",
            description="Lists the tokens of a prompt with their weights and how strongly each speaks to the vision "
            "model: the norm of its context vector. What was cut off stands at the end.",
            search_aliases=["tokenizer", "token count", "prompt length", "inspect prompt"],
            inputs=[io.Conditioning.Input("conditioning", tooltip="From Bridge Text Encode.")],
            outputs=[
                io.String.Output(display_name="tokens", tooltip="The list, as a table in plain text."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, conditioning: Any) -> io.NodeOutput:
        text = listing(conditioning)
        return io.NodeOutput(text, ui=ui.PreviewText(text))
