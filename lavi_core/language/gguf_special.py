"""Whether a GGUF file's prompts begin with BOS or a space and end with EOS, and which characters are others': as the
file says, by llama.cpp's rule.

transformers 5.24 follows the file's keys but for T5's and has other defaults, 4.57 follows neither: a Llama would
hear one more token under one than under the other. 5.24 also puts a space before every prompt's first word, which is
another token with it, and leaves T5's map of characters out, without which an ellipsis is unknown. Source: llama.cpp's
src/llama-vocab.cpp, llama_vocab::impl::load and llm_tokenizer_ugm.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

KEY = "tokenizer.ggml."
PARTS = ("normalizer", "pre_tokenizer", "decoder")


class Ends(NamedTuple):
    """Whether BOS and EOS are added, and their ids (None = the vocabulary has none)."""

    add_bos: bool
    add_eos: bool
    bos: int | None
    eos: int | None


# tokenizer.ggml.model -> what holds where the file does not say.
DEFAULTS: Mapping[str, Ends] = {
    "llama": Ends(True, False, 1, 2),
    "gpt2": Ends(False, False, 11, 11),
    "t5": Ends(False, True, None, 1),
}
# tokenizer.ggml.pre of the vocabularies of kind gpt2 that begin with BOS where the file does not say.
BEGIN = {
    *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
    *("tekken", "chameleon"),
}


def put_ends(tokenizer: Any, fields: Mapping[str, Any], name: str) -> None:
    """Let a fast ``tokenizer`` of transformers, in place, add what the file asks for. fields: of gguf's reader.

    Raises ValueError, naming the file, where it asks for a token that it does not have.
    """

    def said(key: str, default: Any) -> Any:
        field = fields.get(KEY + key)
        return default if field is None else field.contents()

    default = DEFAULTS.get(said("model", ""))
    if default is None:
        return
    begin = default.add_bos or said("pre", "") in BEGIN
    bos = _added(tokenizer, said("add_bos_token", begin), said("bos_token_id", default.bos), "bos", name)
    eos = _added(tokenizer, said("add_eos_token", default.add_eos), said("eos_token_id", default.eos), "eos", name)
    text = tokenizer("a", add_special_tokens=False)["input_ids"]
    if tokenizer("a")["input_ids"] == [*(index for _, index in bos), *text, *(index for _, index in eos)]:
        return
    from tokenizers.processors import TemplateProcessing

    before, after = [token for token, _ in bos], [token for token, _ in eos]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *before, "$B:1", *after],
        special_tokens=list(dict.fromkeys(bos + eos)),
    )


def put_space(tokenizer: Any, fields: Mapping[str, Any]) -> None:
    """Let a fast ``tokenizer`` of transformers, in place, put no space before a prompt of a sentencepiece vocabulary
    of kind llama whose file says so. fields: of gguf's reader."""
    model, space = (fields.get(KEY + key) for key in ("model", "add_space_prefix"))
    if model is None or model.contents() != "llama" or space is None or space.contents():
        return
    from tokenizers import Tokenizer, models

    backend, small = tokenizer.backend_tokenizer, Tokenizer(models.BPE())  # without the words, which are many
    for part in PARTS:
        if getattr(backend, part) is not None:
            setattr(small, part, getattr(backend, part))
    parts = json.loads(small.to_str())
    small = Tokenizer.from_str(json.dumps(parts | {part: _without_space(parts[part]) for part in PARTS}))
    for part in PARTS:
        setattr(backend, part, getattr(small, part))


def put_characters(tokenizer: Any, fields: Mapping[str, Any], name: str) -> None:
    """Let a fast ``tokenizer`` of transformers, in place, replace characters by a T5 file's map (sentencepiece's
    precompiled normalisation) before anything else. fields: of gguf's reader. Raises ValueError, naming the file, for
    a map that is none."""
    model, field = (fields.get(KEY + key) for key in ("model", "precompiled_charsmap"))
    if model is None or model.contents() != "t5" or field is None:
        return
    backend = tokenizer.backend_tokenizer
    characters = bytes(value & 255 for value in field.contents())
    if not characters or (backend.normalizer is not None and b"Precompiled" in backend.normalizer.__getstate__()):
        return
    from tokenizers import normalizers

    try:
        ours = normalizers.Precompiled(characters)
    except Exception as error:  # a bare one
        raise ValueError(
            f"the precompiled_charsmap of {name} is none ({error}); take the model's own folder"
        ) from error
    backend.normalizer = ours if backend.normalizer is None else normalizers.Sequence([ours, backend.normalizer])


def _without_space(part: dict[str, Any] | None) -> dict[str, Any] | None:
    """Of a tokenizer's JSON: no Prepend, no Strip of the decoder, Metaspace never prepends."""
    if part is None or part["type"] in ("Prepend", "Strip"):
        return None
    if part["type"] == "Metaspace":
        return part | {"prepend_scheme": "never"}
    for key in ("normalizers", "pretokenizers", "decoders"):
        if key in part:
            return part | {key: [kept for one in part[key] if (kept := _without_space(one)) is not None]}
    return part


def _added(tokenizer: Any, wanted: bool, index: int | None, which: str, name: str) -> list[tuple[str, int]]:
    if not wanted:
        return []
    token = None if index is None else tokenizer.backend_tokenizer.id_to_token(int(index))
    if token is None:
        raise ValueError(
            f"{name} says that {which.upper()} is added to its prompts, and its {which}_token_id ({index}) is no token "
            "of its vocabulary; take the model's own folder"
        )
    return [(token, int(index or 0))]
