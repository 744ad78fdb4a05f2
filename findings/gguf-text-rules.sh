#!/usr/bin/env bash
# transformers: of a GGUF file's rules for text two are left out: no space before a prompt, and T5's map of characters.
#
# Guess: the tokenizer that transformers makes of a GGUF file has what the file says of it: tokenizer.ggml.add_space_prefix and
#   precompiled_charsmap as it has add_bos_token and add_eos_token.
# Seen (transformers 5.24.0, gguf 0.19.0): both are read and not used. A vocabulary of kind llama (sentencepiece's BPE) always
#   gets a space before the prompt, so that of a file that says false the first word is another token. A vocabulary of kind t5
#   gets its characters as they are: an ellipsis, a ligature, a full-width comma are unknown, where sentencepiece, by the map
#   that lies in the file, makes "...", letters and a comma of them.
# Why it matters: language models are given as GGUF to cards of 6 to 12 GB, T5-XXL and umT5 above all. A prompt's first word is
#   often what it is about, and text that was written elsewhere is full of such characters. The same model from its folder and
#   from its GGUF file hears two prompts.
# Instead: set the tokenizer's Metaspace to prepend_scheme="never" where the file says false; put
#   tokenizers.normalizers.Precompiled(the file's bytes) before its normalizer.
# Source: transformers/integrations/gguf/gguf_tokenizer_mapping.py, sentencepiece_tokenizer and unigram_tokenizer; llama.cpp,
#   src/llama-vocab.cpp, "add_space_prefix" and "precompiled_charsmap".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==5.24.0 gguf==0.19.0 \
    sentencepiece==0.2.3 protobuf==7.36.2

cd "$work"
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import sys
import sentencepiece, transformers
from importlib.metadata import version
from sentencepiece import sentencepiece_model_pb2
import gguf

CAPTIONS = [f"{a} {b}... fine, disc (near the sea)" for a in ("a red", "sealed", "the finest") for b in ("dear", "and read")]

def tokens(kind, texts, **more):
    """[(text, sentencepiece's tokens, transformers' of a GGUF file that says the same)]"""
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(CAPTIONS * 20), model_prefix="theirs", minloglevel=2,
        vocab_size=300, hard_vocab_limit=False, **more)
    theirs = sentencepiece.SentencePieceProcessor(model_file="theirs.model")
    rules = sentencepiece_model_pb2.ModelProto.FromString(theirs.serialized_model_proto()).normalizer_spec
    pieces, architecture = range(theirs.get_piece_size()), "llama" if kind == "llama" else "t5"
    writer = gguf.GGUFWriter("tiny.gguf", architecture)
    for key in ("block_count", "embedding_length", "context_length", "feed_forward_length", "attention.head_count"):
        writer.add_uint32(f"{architecture}.{key}", 8)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model(kind)
    writer.add_token_list([theirs.id_to_piece(i) for i in pieces])
    writer.add_token_scores([theirs.get_score(i) for i in pieces])
    writer.add_token_types([2 if theirs.is_unknown(i) else 3 if theirs.is_control(i) else 6 if theirs.is_byte(i) else 1
                            for i in pieces])
    writer.add_unk_token_id(theirs.unk_id()), writer.add_eos_token_id(theirs.eos_id())
    writer.add_add_space_prefix(rules.add_dummy_prefix)
    if rules.precompiled_charsmap:
        writer.add_precompiled_charsmap(rules.precompiled_charsmap)
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
    made = transformers.AutoTokenizer.from_pretrained(".", gguf_file="tiny.gguf")
    found = []
    for text in texts:
        ours, ids = theirs.encode(text), made(text, add_special_tokens=False)["input_ids"]
        found.append((text, [theirs.id_to_piece(i) for i in ours], [theirs.id_to_piece(i) for i in ids]))
    return found

bpe = dict(model_type="bpe", byte_fallback=True, normalization_rule_name="identity")
unigram = dict(model_type="unigram", normalization_rule_name="nmt_nfkc", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
words, odd = ["red disc", "sealed and dear"], ["a red disc\u2026", "the \ufb01nest disc", "fine\uff0c dear"]
rows = {
    "llama, a space": tokens("llama", words, add_dummy_prefix=True, **bpe),
    "llama, no space": tokens("llama", words, add_dummy_prefix=False, **bpe),
    "t5, plain text": tokens("t5", words, **unigram),
    "t5, odd characters": tokens("t5", odd, **unigram),
}
print(f"versions: transformers {transformers.__version__}, gguf {version('gguf')}, sentencepiece {version('sentencepiece')}")
print("guess:    the tokens are sentencepiece's, whatever the file's rules are")
print("seen:     a space is always put before the prompt, and characters are never replaced")
print("output:   file | text | sentencepiece | transformers, of the GGUF file")
for name, found in rows.items():
    for text, theirs, made in found:
        print(f"          {name:18} | {ascii(text):24} | {' '.join(theirs)} | {' '.join(made)}")
same = {name: [theirs == made for _, theirs, made in found] for name, found in rows.items()}
if not (all(same["llama, a space"]) and all(same["t5, plain text"])):
    sys.exit("no longer so: the tokens differ where there is no such rule too")
if any(same["llama, no space"]) or any(same["t5, odd characters"]):
    sys.exit("no longer so: the file's rules are followed")
PYTHON
