"""A bridge's tokenizer as the host asks a CLIP for it, and the tokens that its text nodes pass around."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .context_tokens import ContextToken
from .notice import notice, take_back
from .prompt_syntax import Piece, PromptOptions, as_written, cut_off, read, unasked, unknown

TOKENS = "lavi_bridge"  # the key under which the pieces of a prompt travel in the host's token dictionary
# What the host's text nodes add that a bridge has no ear for; None, False and "" are as good as nothing.
UNHEARD = ("image", "images", "image_embeds", "video", "audio", "lyrics", "keyscale", "minimax_ref_items")


class Beside(NamedTuple):
    """What the vision model's own encoder says of a prompt. tokens: what each vector is, weights included."""

    context: Tensor  # [1 O C] float32
    pooled: Tensor | None  # [1 P] float32
    tokens: tuple[ContextToken, ...]


class BridgeTokens(dict[str, list[Piece]]):
    """The pieces of a prompt, under every name: nodes for several encoders ask for "l", "g", "t5xxl" and put what they
    find together anew.

    strength: of the bridge, see the core's ``at_strength``. beside: None = the bridge is heard alone.
    """

    strength: float = 1.0
    beside: Beside | None = None

    def __missing__(self, name: str) -> list[Piece]:
        return list(self[TOKENS])


def heard(tokens: Mapping[str, Sequence[Piece]]) -> list[Piece]:
    """The pieces of the one text in ``tokens``. Raises ValueError where a node put different texts together."""
    found: dict[tuple[str, ...], list[Piece]] = {}
    for pieces in tokens.values():
        spoken = [piece for piece in pieces if piece.prompt.text.strip()]
        if spoken:  # nodes fill the shorter of two texts up with the empty prompt
            found.setdefault(tuple(piece.prompt.text for piece in spoken), spoken)
    if len(found) > 1:
        first, second, *_ = ("".join(texts) for texts in found)
        raise ValueError(
            f"a bridge hears one text, this node gives {len(found)} ({_short(first)} and {_short(second)}): write the "
            "same into each field, leave the others empty, or take Bridge Text Encode"
        )
    return next(iter(found.values()), list(tokens[TOKENS]))


def _short(text: str) -> str:
    return repr(text if len(text) < 30 else f"{text[:27]}...")


class BridgeTokenizer:
    """What the host calls a CLIP's tokenizer. Prompts are plain language, as for the host's own encoders that are
    language models: parentheses are parentheses, not weights."""

    def __init__(self, bridge: Any):
        self._encoder, self._recipe, self._vision = bridge.encoder, bridge.config.prompt, bridge.config.vision
        self._whole = bridge.config.adapter.positions is None
        self._queries = bridge.queries

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **more: Any) -> BridgeTokens:
        """Raises ValueError for what is no text; says what of a text is cut."""
        if self._vision.other_pooled is not None:
            raise ValueError(
                f"{self._vision.model_id} takes a pooled vector from another encoder too, which this node cannot add "
                "to a bridge's: take Bridge Text Encode, and connect that encoder's CLIP Text Encode to pooled"
            )
        odd = next((name for name in UNHEARD if _is_something(more.get(name))), None)
        if odd is not None:
            raise ValueError(
                f"a bridge hears text alone, this node gives it {odd} too: take a text node without that, or a CLIP "
                "that knows it"
            )
        take_back()
        pieces = read(self._encoder, self._recipe, text, PromptOptions())
        if lost := cut_off(pieces):
            whole = " or hear it at full length" if self._whole else ""
            notice(f"{lost}; Bridge Text Encode can chunk a long prompt{whole}")
        if lost := unasked(self._queries, pieces):
            notice(f"{lost}, in Bridge Text Encode")
        for line in (unknown(self._encoder.tokenizer, pieces), *as_written(text, PromptOptions(), stock=True)):
            if line:
                notice(line)
        return BridgeTokens({TOKENS: pieces})

    def state_dict(self) -> dict[str, Tensor]:
        """What a saver writes beside the weights. Raises ValueError: it would write the language model alone."""
        raise ValueError(
            "a bridge's CLIP cannot be saved by this node, which would leave its adapter out: take Save Bridge "
            "(LaVi-Bridge), and for a checkpoint leave its CLIP unconnected"
        )

    def decode(self, token_ids: Any, **kwargs: Any) -> str:
        return self._encoder.tokenizer.decode(token_ids, **kwargs)


def _is_something(value: Any) -> bool:
    if value is None or value is False or isinstance(value, (str, list, tuple, dict)):
        return bool(value)
    return True
