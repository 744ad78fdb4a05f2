#!/usr/bin/env bash
# torchmetrics: the CLIP score of a caption that is longer than CLIP hears is the same whatever the caption says.
#
# Guess: a caption of more than 77 tokens is scored as its first 77 tokens, as the warning says ("Will truncate captions").
# Seen (torchmetrics 1.9.0, transformers 4.57.6): the ids are cut as they are, and <|endoftext|>, at whose place CLIP pools, goes
#   with the rest. CLIP then pools at the first token, <|startoftext|>, which hears no word behind it: each such caption has one
#   and the same score for a picture, two without a word in common too. It is so with eos_token_id = 2 in the config (pooled at
#   the highest id, which is <|startoftext|>'s now) and with the true one (pooled where it stands, 0 where it does not). A caption
#   beside it in the batch that is short enough keeps its score. The function and the class do so. (Over transformers 5.24.0
#   either ends in an AttributeError: get_image_features gives an output object there.) Reported as a score that is too low
#   (Lightning-AI/torchmetrics issue 2883, open); that it says nothing of the caption at all is not said there.
# Why it matters: long captions are what a language model is put in front of a vision model for. On a benchmark of them the mean
#   score moves towards a constant that knows the pictures alone, and two models that follow the text differently look alike.
# Instead: cut captions by the tokenizer, which keeps the end: tokenizer(text, truncation=True, max_length=77), and decode, or give
#   ids of your own to get_text_features.
# Source: torchmetrics/functional/multimodal/clip_score.py, _get_features, "input_ids"[..., :max_position_embeddings];
#   transformers/models/clip/modeling_clip.py, CLIPTextTransformer.forward, argmax.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  torch==2.13.0 numpy==2.4.6 pillow==12.0.0 transformers==4.57.6 torchmetrics==1.9.0

HF_HUB_OFFLINE=1 WORK="$work" "$work/venv/bin/python" - <<'PYTHON'
import json, os, sys, warnings
from pathlib import Path
import torch, torchmetrics, transformers
from torchmetrics.functional.multimodal import clip_score
from torchmetrics.multimodal.clip_score import CLIPScore
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizerFast

transformers.logging.set_verbosity_error()
warnings.simplefilter("ignore")
work = Path(os.environ["WORK"])
letters = "abcdefghijklmnopqrstuvwxyz"
words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]  # the ends last, as in CLIP
(work / "vocab.json").write_text(json.dumps({word: place for place, word in enumerate(words)}))
(work / "merges.txt").write_text("#version: 0.2\n")
tokenizer = CLIPTokenizerFast(str(work / "vocab.json"), str(work / "merges.txt"), model_max_length=77)
pictures = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
processor = CLIPProcessor(pictures, tokenizer)
START, END = tokenizer.convert_tokens_to_ids(words[-2:])
small = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)

def clip(eos):
    torch.manual_seed(0)
    text = dict(small, vocab_size=len(words), max_position_embeddings=77, bos_token_id=START, eos_token_id=eos)
    vision = dict(small, image_size=32, patch_size=8)
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()

picture = torch.randint(256, (3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
long = [" ".join(few[i % 8] for i in range(90)) for few in ("abcdefgh", "qrstuvwx")]  # no word in common

@torch.no_grad()
def asked(eos):
    """(score of each long caption, of what its truncation by the tokenizer says, of a short one alone and beside a long one)"""
    model = clip(eos)
    def score(text):
        return round(float(clip_score(picture, text, lambda: (model, processor))), 3)
    def cut(text):
        return tokenizer.decode(tokenizer(text, truncation=True)["input_ids"], skip_special_tokens=True)
    metric = CLIPScore(lambda: (model, processor))
    metric.update([picture, picture], ["a b c", long[0]])
    beside = round(2 * float(metric.compute()) - score(long[0]), 2)
    return [score(text) for text in long], [score(cut(text)) for text in long], round(score("a b c"), 2), beside

print(f"versions: torchmetrics {torchmetrics.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")
print("guess:    a long caption has the score of its first 77 tokens")
print("seen:     two long captions without a word in common have one score, and neither that of its first 77 tokens")
print("output:   eos_token_id | as they are | cut by the tokenizer | a short one alone | the same beside a long one, by CLIPScore")
so = True
for eos in (2, END):
    whole, cut, alone, beside = asked(eos)
    print(f"          {eos:2} | {whole} | {cut} | {alone} | {beside}")
    so &= whole[0] == whole[1] and abs(cut[0] - cut[1]) > 1 and all(abs(a - b) > 1 for a, b in zip(whole, cut))
    so &= abs(alone - beside) < 0.05
if not so:
    sys.exit("no longer so: a caption over 77 tokens is scored by its words")
PYTHON
