#!/usr/bin/env bash
# transformers: with a token that was added to CLIP, its pooled vector is that token's and no longer the whole prompt's.
#
# Guess: a prompt in which a word is replaced by an added token with the word's own embedding, as textual inversion begins, has
#   the same states and the same pooled vector.
# Seen (transformers 5.24.0): the states are the same to the bit, the pooled vector is not. Of a config that says
#   eos_token_id = 2, as those of Stable Diffusion's and SDXL's encoders do, CLIP pools where the highest id of the prompt
#   stands. That is the end, <|endoftext|>, until a token is added behind it. CLIP reads from left to right: the pooled vector
#   then knows nothing of what follows the new token. Nothing is said. With eos_token_id = 49407 in the config it is right.
# Why it matters: SDXL's U-Net takes this vector beside the tokens, and so does Flux. A prompt with a textual inversion in it gets
#   another one in diffusers, which asks this class, than in a program that looks for the end token by itself.
# Instead: set config.eos_token_id, and the model's own eos_token_id, to the id of <|endoftext|> before adding tokens.
# Source: transformers/models/clip/modeling_clip.py, "if self.eos_token_id == 2", which says so in a comment.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==5.24.0

HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import sys
import torch, transformers
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

transformers.logging.set_verbosity_error()
START, END, WORD = 98, 99, 5
NEW = 100
plain = torch.tensor([[START, 11, WORD, 7, 8, END, END, END]])
other = torch.tensor([[START, 11, WORD, 7, 30, END, END, END]])  # another word behind

def added(ids):
    return torch.where(ids == WORD, NEW, ids)

@torch.no_grad()
def asked(eos):
    """(states the same, pooled the same, the position that the pooled vector is of, pooled moves with the words behind)"""
    torch.manual_seed(0)
    model = CLIPTextModelWithProjection(CLIPTextConfig(
        vocab_size=100, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, projection_dim=16,
        max_position_embeddings=8, bos_token_id=START, eos_token_id=eos)).eval()
    model.resize_token_embeddings(NEW + 1, mean_resizing=False)
    table = model.get_input_embeddings().weight
    table[NEW] = table[WORD]
    with_word, with_new, behind = model(plain), model(added(plain)), model(added(other))
    pooled = model.text_projection(with_new.last_hidden_state[0])
    place = (pooled - with_new.text_embeds).abs().sum(-1).argmin().item()
    return (torch.equal(with_word.last_hidden_state, with_new.last_hidden_state),
            torch.equal(with_word.text_embeds, with_new.text_embeds), place,
            not torch.equal(with_new.text_embeds, behind.text_embeds))

print(f"versions: transformers {transformers.__version__}, torch {torch.__version__}")
print("guess:    an added token with a word's embedding changes nothing")
print(f"seen:     with eos_token_id = 2 the pooled vector is the new token's, at 2, and not the end's, at {plain[0].tolist().index(END)}")
print("output:   eos_token_id | states the same | pooled the same | pooled at | hears the words behind the token")
found = {eos: asked(eos) for eos in (2, END)}
for eos, row in found.items():
    print(f"          {eos:2} | {row[0]} | {row[1]} | {row[2]} | {row[3]}")
if found != {2: (True, False, 2, False), END: (True, True, 5, True)}:
    sys.exit("no longer so: the pooled vector is the end's with eos_token_id = 2 too")
PYTHON
