#!/usr/bin/env bash
# transformers 5: the same tokenizer files give other ids in a folder of their own than beside the model's config.json.
#
# Guess: a tokenizer.json is the whole tokenizer; AutoTokenizer gives its ids wherever it lies, as it did before 5.0.
# Seen (transformers 5.24.0): where tokenizer_config.json names the class of a model ("GPT2Tokenizer"), the tokenizer is
#   built anew: words, merges and post-processor are the file's, how text is cut up before them (normalizer,
#   pre-tokenizer) is the class's. Beside a config.json AutoTokenizer knows of some model types that the class is not
#   theirs (Granite, OLMo 2, which split as GPT-4 does under GPT-2's name) and takes the file as it is. Alone it cannot
#   know, and by the class itself nobody asks. Nothing is said. transformers 4.57.6 gives the file's ids in every case.
# Why it matters: diffusers keeps a text encoder as text_encoder/ with config.json and tokenizer/ without. A bridge
#   trained on the model's own folder hears other tokens from a pipeline's, at numbers, line ends and "(word:1.2)" most
#   of all. save_pretrained then writes the class's rules into the new tokenizer.json.
# Instead: AutoTokenizer.from_pretrained(tokenizer folder, config=the model's config), or PreTrainedTokenizerFast, which
#   takes any file as it is. Compare the ids with those of tokenizers.Tokenizer.from_file once.
# Source: transformers/tokenization_utils_tokenizers.py, TokenizersBackend.convert_to_native_format;
#   models/gpt2/tokenization_gpt2.py, __init__; models/auto/tokenization_auto.py, AutoTokenizer.from_pretrained. Seen in
#   a training that took its tokenizer from a folder of its own: allenai/open-instruct#1896.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/new"
python3 -m venv "$work/old"
"$work/new/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 tokenizers==0.23.3 jinja2==3.1.6
"$work/old/bin/pip" install --quiet --disable-pip-version-check transformers==4.57.6 tokenizers==0.22.2 jinja2==3.1.6

cat > "$work/read.py" <<'PYTHON'
import json, pathlib, sys
import tokenizers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast, __version__, logging

logging.set_verbosity_error()
beside, alone = (pathlib.Path(sys.argv[1]) / name for name in ("model", "tokenizer"))
if not alone.is_dir():
    # As Granite and OLMo 2 split: numbers in threes, a sign with the word behind it, a line end with what precedes it.
    rule = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
            r"\s*[\r\n]+|\s+(?!\S)|\s+")
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(rule), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    lines = ["(detailed:1.2), a red cat,\n24 mm, 512x768, 1984\n", "(sharp:1.4), 202 dogs in 102 rows, 84 of 984,\n"]
    made.train_from_iterator(lines * 20, trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    for folder in (beside, alone):
        folder.mkdir()
        made.save(str(folder / "tokenizer.json"))
        said = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(said))
    (beside / "config.json").write_text('{"model_type": "granite"}')

found = {
    "beside config.json": AutoTokenizer.from_pretrained(beside),
    "alone": AutoTokenizer.from_pretrained(alone),
    "alone, config=": AutoTokenizer.from_pretrained(alone, config=AutoConfig.from_pretrained(beside)),
    "alone, PreTrainedTokenizerFast": PreTrainedTokenizerFast.from_pretrained(alone),
}
prompt = "(detailed:1.2), a red cat,\n24 mm, 1984"
file = Tokenizer.from_file(str(alone / "tokenizer.json")).encode(prompt).tokens
rows = {name: made.convert_ids_to_tokens(made(prompt).input_ids) for name, made in found.items()}
print(f"versions: transformers {__version__}, tokenizers {tokenizers.__version__}")
print("          tokenizer.json itself         ", *file)
for name, row in rows.items():
    print(f"          {name:30}", *(["the same"] if row == file else [type(found[name]).__name__, *row]))
as_guessed = all(row == file for row in rows.values())
rest = all(row == file for name, row in rows.items() if name != "alone")
if as_guessed != (__version__ < "5") or not rest:
    sys.exit("No longer so: transformers 5 gives a tokenizer.json's ids wherever it lies, or transformers 4 does not.")
PYTHON

echo "guess:    one tokenizer.json, one row of tokens"
echo "seen:     transformers 5 gives another where no config.json lies beside it"
for version in old new; do
    HF_HUB_OFFLINE=1 TRANSFORMERS_NO_ADVISORY_WARNINGS=1 "$work/$version/bin/python" "$work/read.py" "$work"
done
