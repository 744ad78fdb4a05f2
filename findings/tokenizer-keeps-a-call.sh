#!/usr/bin/env bash
# transformers and tokenizers: a saved tokenizer.json holds the truncation and padding of the last call before it.
#
# Guess: tokenizer(captions, truncation=True, padding="max_length", max_length=77) is one call; save_pretrained writes
#   the tokenizer, the same before and after it.
# Seen (transformers 5.24.0, tokenizers 0.23.3): the call sets them in the Rust tokenizer, where they stay until the
#   next call, and the file is that tokenizer's. transformers does not obey it when it has read the file (it sets both
#   anew at each call), so that a test by AutoTokenizer finds nothing; but padding_side="left" of one call is the
#   reloaded tokenizer's own from then on. tokenizers.Tokenizer.from_file and from_str obey: a longer text is cut, a
#   shorter one is padded, and .ids says neither. A call without truncation and padding just before saving leaves
#   neither in it.
# Why it matters: a trainer tokenises captions at 77 tokens and saves model and tokenizer. Programs in
#   Rust and ComfyUI, which reads the tokenizer.json inside a Gemma 4 or gpt-oss text encoder's file so, then cut every
#   prompt at 77 and hear padding as words.
# Instead: before save_pretrained call tokenizer.backend_tokenizer.no_truncation() and no_padding(); after from_file and
#   from_str the same two of what they give.
# Source: transformers/tokenization_utils_tokenizers.py, set_truncation_and_padding (enable_truncation, enable_padding),
#   _save_pretrained (backend_tokenizer.save), convert_to_native_format (what a reload takes of the file). Met in files
#   that were published: vllm-project/llm-compressor#2917.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 tokenizers==0.23.3 jinja2==3.1.6

HF_HUB_OFFLINE=1 TRANSFORMERS_NO_ADVISORY_WARNINGS=1 "$work/venv/bin/python" - "$work" <<'PYTHON'
import pathlib, sys
import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, __version__, logging

logging.set_verbosity_error()
long, short = "a red cat on a green sofa by the window, evening light", "a cat"
made = Tokenizer(models.BPE())
made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
made.train_from_iterator([long, short] * 20, trainers.BpeTrainer(
    vocab_size=400, special_tokens=["<pad>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False))

def forget(tokenizer):
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()

calls = {
    "nothing": lambda t: None,
    "truncation=True, max_length=8": lambda t: t(long, truncation=True, max_length=8),
    "the same, padding='max_length'": lambda t: t(short, truncation=True, padding="max_length", max_length=8),
    "the same, padding_side='left'": lambda t: t(
        short, truncation=True, padding="max_length", max_length=8, padding_side="left"),
    "the same, and the two of Instead": lambda t: (calls["the same, padding_side='left'"](t), forget(t)),
}
print(f"versions: transformers {__version__}, tokenizers {tokenizers.__version__}")
print("guess:    what was called before save_pretrained is not in the file")
print("seen:     the file cuts and pads as the last call did, for whoever reads it with tokenizers")
print("output:   tokens of a long and a short text        | from_file | AutoTokenizer, its padding_side")
rows = []
for number, (name, happens) in enumerate(calls.items()):
    folder = pathlib.Path(sys.argv[1]) / str(number)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(made.to_str()), pad_token="<pad>")
    happens(tokenizer)
    tokenizer.save_pretrained(folder)
    file, auto = Tokenizer.from_file(str(folder / "tokenizer.json")), AutoTokenizer.from_pretrained(folder)
    rows.append((tuple(len(file.encode(text).ids) for text in (long, short)),
                 tuple(len(auto(text).input_ids) for text in (long, short)), auto.padding_side))
    print(f"          {name:40} | {str(rows[-1][0]):9} | {rows[-1][1]}, {rows[-1][2]}")
whole = rows[0][1]
read = [whole, (8, whole[1]), (8, 8), (8, 8), whole]
sides = ["right", "right", "right", "left", "right"]
if rows != [(file, whole, side) for file, side in zip(read, sides)]:
    sys.exit("No longer so: a saved tokenizer.json is free of the last call's truncation and padding.")
PYTHON
