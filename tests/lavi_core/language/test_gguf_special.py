"""BOS, EOS and the first space of GGUF files: as llama.cpp adds them, whatever the installed transformers would do.

Expected ids of BOS and EOS were worked out by hand from llama.cpp's rule; transformers 5.24 and 4.57 both give them.
Those of the first space are sentencepiece's own.
"""

from __future__ import annotations

import string
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lavi_bridge.lavi_core.language.gguf_file import read_gguf
from lavi_bridge.lavi_core.language.gguf_special import put_characters, put_ends

LETTERS = list(string.ascii_lowercase)
SPM, BPE, UGM = "llama", "gpt2", "t5"  # as tokenizer.ggml.model says
PROMPT = "a red sea"


def write(path: Path, kind: str, **keys: Any) -> Path:
    """A Llama's or T5's header with a vocabulary of letters and a few words. keys: more of tokenizer.ggml."""
    import gguf

    architecture = "t5" if kind == UGM else "llama"
    special = ["<pad>", "</s>", "<unk>"] if kind == UGM else ["<unk>", "<s>", "</s>"]
    space = "Ġ" if kind == BPE else "▁"
    words = [space, *LETTERS, "re", "red", f"{space}red", "se", "sea", f"{space}sea", f"{space}a"]
    raw = [f"<0x{i:02X}>" for i in range(256)] if kind == SPM else []
    writer = gguf.GGUFWriter(str(path), architecture)
    for key in ("block_count", "embedding_length", "context_length", "feed_forward_length", "attention.head_count"):
        writer.add_uint32(f"{architecture}.{key}", 8)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model(kind)
    writer.add_token_list([*special, *raw, *words])
    writer.add_token_types([3] * 3 + [6] * len(raw) + [1] * len(words))
    if kind == BPE:
        writer.add_token_merges(["r e", "re d", "Ġ red", "s e", "se a", "Ġ sea"])
    else:
        writer.add_token_scores([0.0] * (3 + len(raw)) + [-9.0 if len(w) == 1 else -1.0 / len(w) for w in words])
    ids = {"eos": 1, "unk": 2, "pad": 0} if kind == UGM else {"bos": 1, "eos": 2, "unk": 0}
    for key, value in {**{f"{name}_token_id": index for name, index in ids.items()}, **keys}.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}[type(value)]
        add(f"tokenizer.ggml.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("kind", "keys", "added"),
    [
        (SPM, {}, ([1], [])),
        (SPM, {"add_bos_token": False}, ([], [])),
        (SPM, {"add_bos_token": False, "add_eos_token": True}, ([], [2])),
        (SPM, {"add_bos_token": True, "bos_token_id": 2}, ([2], [])),
        (BPE, {}, ([], [])),
        (BPE, {"pre": "smollm"}, ([], [])),
        (BPE, {"pre": "llama-bpe"}, ([1], [])),
        (BPE, {"pre": "tekken"}, ([1], [])),
        (BPE, {"pre": "llama-bpe", "add_bos_token": False}, ([], [])),
        (BPE, {"add_bos_token": True}, ([1], [])),
        (BPE, {"add_bos_token": True, "add_eos_token": True}, ([1], [2])),
        (UGM, {}, ([], [1])),
        (UGM, {"add_eos_token": False}, ([], [])),
    ],
    ids=str,
)
def test_a_file_says_what_is_added(tmp_path, kind, keys, added):
    tokenizer = read_gguf(write(tmp_path / "tiny.gguf", kind, **keys))[1]
    bare = tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
    assert bare and not {1, 2} & set(bare)
    coded = tokenizer(PROMPT, return_special_tokens_mask=True, return_offsets_mapping=True)
    begin, end = added
    assert coded["input_ids"] == [*begin, *bare, *end]
    assert coded["special_tokens_mask"] == [1] * len(begin) + [0] * len(bare) + [1] * len(end)
    plain = tokenizer(PROMPT, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    assert coded["offset_mapping"] == [(0, 0)] * len(begin) + plain + [(0, 0)] * len(end)


@pytest.mark.parametrize("begins", [True, False])
def test_what_another_transformers_has_put_there_is_no_matter(tmp_path, begins):
    """4.57 begins every Llama with BOS, and no Qwen2, whatever the file says."""
    from tokenizers.processors import ByteLevel, TemplateProcessing

    tokenizer = read_gguf(write(tmp_path / "tiny.gguf", BPE))[1]
    theirs = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)]) if begins else ByteLevel()
    for wanted in (True, False):
        tokenizer.backend_tokenizer.post_processor = theirs
        says = {"model": BPE, "add_bos_token": wanted, "bos_token_id": 1}
        fields = {f"tokenizer.ggml.{key}": SimpleNamespace(contents=lambda v=value: v) for key, value in says.items()}
        put_ends(tokenizer, fields, "tiny.gguf")
        assert (tokenizer(PROMPT)["input_ids"][0] == 1) is wanted


def test_a_token_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"tiny\.gguf says that BOS is added .* bos_token_id \(None\) is no token"):
        read_gguf(write(tmp_path / "tiny.gguf", UGM, add_bos_token=True))


def sentencepieces(folder: Path, kind: str, texts: list[str], **more: Any) -> tuple[Any, Path]:
    """(sentencepiece's processor of a vocabulary trained on ``texts``, a GGUF file that says the same)"""
    import gguf
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_prefix=str(folder / "theirs"), minloglevel=2, **more
    )
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(folder / "theirs.model"))
    proto = sentencepiece_model_pb2.ModelProto.FromString(theirs.serialized_model_proto())
    pieces, path = range(theirs.get_piece_size()), folder / "tiny.gguf"
    architecture = "t5" if kind == UGM else "llama"
    writer = gguf.GGUFWriter(str(path), architecture)
    for key in ("block_count", "embedding_length", "context_length", "feed_forward_length", "attention.head_count"):
        writer.add_uint32(f"{architecture}.{key}", 8)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model(kind)
    writer.add_token_list([theirs.id_to_piece(i) for i in pieces])
    writer.add_token_scores([theirs.get_score(i) for i in pieces])
    writer.add_token_types(
        [2 if theirs.is_unknown(i) else 3 if theirs.is_control(i) else 6 if theirs.is_byte(i) else 1 for i in pieces]
    )
    writer.add_add_space_prefix(proto.normalizer_spec.add_dummy_prefix)
    if proto.normalizer_spec.precompiled_charsmap:
        writer.add_precompiled_charsmap(proto.normalizer_spec.precompiled_charsmap)
    writer.add_unk_token_id(theirs.unk_id())
    writer.add_eos_token_id(theirs.eos_id())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return theirs, path


@pytest.mark.parametrize("space", [True, False])
def test_a_first_space_is_put_where_the_file_says_so(tmp_path, space):
    """As sentencepiece, which made the vocabulary, has it with and without its dummy prefix."""
    texts = [f"{a} {b} disc near the sea" for a in ("a red", "sealed", "the reddest") for b in ("dear", "read")] * 20
    more = {"vocab_size": 300, "model_type": "bpe", "byte_fallback": True, "add_dummy_prefix": space}
    theirs, path = sentencepieces(tmp_path, SPM, texts, normalization_rule_name="identity", **more)
    ours = read_gguf(path)[1]
    for text in ("red disc", "a red disc near the sea", "sealed dear", "seal"):
        ids = ours(text, add_special_tokens=False)["input_ids"]
        assert ids == theirs.encode(text) and ours.decode(ids) == text


def test_characters_are_replaced_as_the_file_says(tmp_path):
    """An ellipsis is three dots, a ligature its letters, as sentencepiece has it for T5."""
    texts = [
        f"{a} {b}... fine, 1/2 disc (near the sea)" for a in ("a red", "the finest") for b in ("café", "read")
    ] * 20
    more = {
        "vocab_size": 60,
        "hard_vocab_limit": False,
        "model_type": "unigram",
        "pad_id": 0,
        "eos_id": 1,
        "unk_id": 2,
        "bos_id": -1,
    }
    theirs, path = sentencepieces(tmp_path, UGM, texts, normalization_rule_name="nmt_nfkc", **more)
    ours = read_gguf(path)[1]
    for text in ("a red disc\u2026", "the \ufb01nest", "cafe\u0301\uff0c fine", "near\u00a0the sea", "\u00bd disc"):
        ids = ours(text, add_special_tokens=False)["input_ids"]
        assert ids == theirs.encode(text), (text, theirs.encode(text, out_type=str), ours.convert_ids_to_tokens(ids))


@pytest.mark.parametrize(("data", "read"), [([], True), ([1, 2, 3], False)])
def test_a_map_that_is_none_is_passed_over_or_refused(tmp_path, data, read):
    tokenizer = read_gguf(write(tmp_path / "tiny.gguf", UGM))[1]
    said = {"model": UGM, "precompiled_charsmap": data}
    fields = {f"tokenizer.ggml.{key}": SimpleNamespace(contents=lambda v=value: v) for key, value in said.items()}
    if read:
        put_characters(tokenizer, fields, "tiny.gguf")
        assert tokenizer(PROMPT)["input_ids"]
    else:
        with pytest.raises(ValueError, match=r"the precompiled_charsmap of tiny\.gguf is none"):
            put_characters(tokenizer, fields, "tiny.gguf")
