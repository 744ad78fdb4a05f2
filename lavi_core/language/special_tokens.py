"""Special tokens that a person types ("</s>", "<|im_end|>") are text; those of the template stay control."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

_RENAMED: WeakKeyDictionary[Any, Renamed] = WeakKeyDictionary()
_KNOWN: WeakKeyDictionary[Any, Known] = WeakKeyDictionary()


class Known(NamedTuple):
    """Of a tokenizer of this size: the ids of its special tokens by their text, and what finds them in a text."""

    size: int
    ids: dict[str, int]
    pattern: re.Pattern[str]


class Renamed(NamedTuple):
    """A copy of a fast tokenizer's backend whose special tokens bear names that nobody types. names: theirs, by the
    tokenizer's own. ids: the tokenizer's own, by the copy's."""

    backend: Any
    names: dict[str, str]
    ids: dict[int, int]

    def own(self, index: int) -> int:
        """The tokenizer's own id for one of the copy's."""
        return self.ids.get(index, index)


def special_tokens(tokenizer: Any) -> dict[str, int]:
    """Text -> id of every token that is control to this tokenizer."""
    return _known(tokenizer).ids


def holds_special(tokenizer: Any, text: str) -> bool:
    return _known(tokenizer).pattern.search(text) is not None


def _known(tokenizer: Any) -> Known:
    """Built once a tokenizer, and again where tokens were added: some have thousands, and every caption asks."""
    if tokenizer not in _KNOWN or _KNOWN[tokenizer].size != len(tokenizer):
        added = getattr(tokenizer, "added_tokens_decoder", {})
        ids = {token.content: index for index, token in added.items() if token.special}
        ids |= dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        pattern = re.compile("|".join(re.escape(token) for token in ids if token) or r"(?!)")
        _KNOWN[tokenizer] = Known(len(tokenizer), ids, pattern)
    return _KNOWN[tokenizer]


def encode_as_text(tokenizer: Any, template: tuple[str, str], prompt: str, add_special_tokens: bool) -> dict[str, Any]:
    """Token ids, offsets and the mask of special tokens, as a fast tokenizer gives them for prefix + prompt + suffix,
    but with everything in ``prompt`` as plain text. Offsets are those in the plain rendering."""
    renamed = _renamed(tokenizer)
    prefix, suffix = (_replaced(part, renamed.names) for part in template)
    text = prefix + prompt + suffix
    coded: Any = renamed.backend.encode(text, add_special_tokens=add_special_tokens)
    moved = len(template[0]) - len(prefix)
    typed = set(special_tokens(tokenizer).values())
    unknown: int = getattr(tokenizer, "unk_token_id", None) or 0
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    mask: list[int] = []
    pieces: list[int]
    for index, (start, stop), special in zip(coded.ids, coded.offsets, coded.special_tokens_mask, strict=True):
        inside = start >= len(prefix) and stop <= len(prefix) + len(prompt) and stop > start
        if inside and index in typed and not special:  # a vocabulary that holds them as whole pieces of text
            parts: list[int] = [
                i for letter in text[start:stop] for i in renamed.backend.encode(letter, add_special_tokens=False).ids
            ]
            pieces = [i for i in parts if i not in typed] or [unknown]
        else:
            pieces = [renamed.own(index)]
        ids += pieces
        offsets += [(start + moved, stop + moved) if stop > start else (start, stop)] * len(pieces)
        mask += [int(special)] * len(pieces)
    return {"input_ids": ids, "offset_mapping": offsets, "special_tokens_mask": mask}


def _replaced(text: str, names: dict[str, str]) -> str:
    for name in sorted(names, key=len, reverse=True):
        text = text.replace(name, names[name])
    return text


def _renamed(tokenizer: Any) -> Renamed:
    if tokenizer not in _RENAMED:
        from tokenizers import Tokenizer

        data = json.loads(tokenizer.backend_tokenizer.to_str())
        specials = special_tokens(tokenizer)
        names = {token: f"\ue000{index}\ue001" for token, index in specials.items()}
        for entry in data["added_tokens"]:
            entry["content"] = names.get(entry["content"], entry["content"])
        backend = Tokenizer.from_str(json.dumps(data))
        backend.no_truncation()
        backend.no_padding()
        found = {backend.token_to_id(names[token]): index for token, index in specials.items()}
        _RENAMED[tokenizer] = Renamed(backend, names, {k: v for k, v in found.items() if k is not None})
    return _RENAMED[tokenizer]
