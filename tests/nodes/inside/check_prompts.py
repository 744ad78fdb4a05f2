"""Prompts as people write them: weights, BREAK, long ones, templates, and those that were encoded before."""

# pyright: reportMissingImports=false

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import comfy.model_management
import comfy.sd1_clip
import torch
from host_side import HOST, Lines, check, connected, context, language_model, refused

import nodes as stock

prompting_ = importlib.import_module("hyphen-pack.nodes.prompt_syntax")
prompt_cache_ = importlib.import_module("hyphen-pack.nodes.prompt_cache")
core = importlib.import_module("hyphen-pack.lavi_core.prompt")
tokens_ = importlib.import_module("hyphen-pack.lavi_core.language.tokens")
tokens_of_ = importlib.import_module("hyphen-pack.nodes.context_tokens")
weights_ = importlib.import_module("hyphen-pack.lavi_core.language.prompt_weights")

LONG = "a red circle left of a blue square and two elephants in the forest with a candy"
WEIGHED = "a (red:1.4) circle left of a blue square"


def encode(bridge, text, **options):
    conditioning, report = bridge.encode(text, prompting_.PromptOptions(**options))
    return conditioning[0][0], report


def heard(bridge, text, **options):
    return bridge.encode(text, prompting_.PromptOptions(**options))[0][0][1]["lavi_bridge"]


def passes_of(bridge):
    """A list that grows with each forward pass of the language model."""
    passes = []
    bridge.patcher.model.model.register_forward_hook(lambda *_: passes.append(1))
    return passes


@check
def weights_are_those_of_the_hosts_own_tokenizer():
    """Token for token, on the vocabulary that the host brings."""
    import transformers

    tokenizer = transformers.CLIPTokenizerFast.from_pretrained(str(Path(HOST) / "comfy" / "sd1_tokenizer"))
    theirs = comfy.sd1_clip.SDTokenizer(str(Path(HOST) / "comfy" / "sd1_tokenizer"))
    for text in (
        "a (red:1.3) fox",
        "a ((red)) fox, (very (tiny:0.5) thing)",
        "smile \\(happy\\) (and \\(sad\\):0.8)",
        "unbalanced (red fox",
        "unbalanced red) fox",
        "(a:b) (c:1.2:0.7) () (:2)",
        "plain text",
        "(everything:1.21)",
    ):
        (batch,) = theirs.tokenize_with_weights(text)
        prompt = prompting_.Prompt.weighted(text)
        tokens = tokens_.tokenize(tokenizer, [prompt.text], core.PromptRecipe())
        ours = weights_.token_weights(tokens, prompt.text, prompt.weights)
        assert tokens.ids[0].tolist() == [token for token, _ in batch], text
        assert torch.allclose(ours, torch.tensor([weight for _, weight in batch])), (text, ours)


@check
def weights_of_one_are_the_plain_path_to_the_bit():
    for kind in ("bert", "pixart", "t5"):
        bridge = connected(kind, None if kind == "t5" else language_model("bert"))
        passes = passes_of(bridge)
        plain, _ = encode(bridge, "a red circle")
        for text in ("a red circle", "a (red:1.0) circle", "(a red:1) circle"):
            assert torch.equal(encode(bridge, text, weights=True)[0], plain), text
        assert len(passes) == 4
        assert not torch.equal(encode(bridge, "a (red:1.01) circle", weights=True)[0], plain)


@check
def a_weight_acts_on_its_tokens_after_the_adapter():
    """(context - context of the empty prompt) * weight + context of the empty prompt, nowhere else."""
    for kind in ("bert", "pixart", "llama"):
        bridge = connected(kind, language_model("bert" if kind == "pixart" else kind))
        plain, _ = encode(bridge, WEIGHED.replace("(", "").replace(":1.4)", ""))
        empty, _ = encode(bridge, "")
        ours, report = encode(bridge, WEIGHED, weights=True)
        tokens = heard(bridge, WEIGHED, weights=True).tokens
        red = [i for i, token in enumerate(tokens) if token.text.strip() and token.text.strip() in "red" and token.span]
        assert red and "".join(tokens[i].text for i in red).strip() == "red" and "1.4" in report, (tokens, report)
        assert [token.weight for token in tokens] == [
            torch.tensor(1.4).item() if i in red else 1.0 for i in range(len(tokens))
        ]
        for i in range(len(tokens)):
            if i in red:
                blank = empty[0, min(i, empty.shape[1] - 1)]
                torch.testing.assert_close(ours[0, i], (plain[0, i] - blank) * 1.4 + blank)
                assert (ours[0, i] - plain[0, i]).abs().max() > 1e-3
            else:
                assert torch.equal(ours[0, i], plain[0, i]), i


@check
def parentheses_are_plain_text_by_default_and_on_the_clip_wire():
    bridge = connected("bert")
    plain, _ = encode(bridge, "a (red:1.4) circle")
    assert torch.equal(stock.CLIPTextEncode().encode(bridge.clip, "a (red:1.4) circle")[0][0][0], plain)
    assert not torch.equal(encode(bridge, "a red circle")[0], plain)
    assert {token.weight for token in heard(bridge, "a (red:1.4) circle").tokens} == {1.0}
    told = "(red:1.4) is read as it is written, parentheses and all: turn weights on to weigh it"
    assert told in encode(bridge, "a (red:1.4) circle")[1]
    for text, options in (("a (red:1.4) circle", {"weights": True}), ("a clock (at 10:30), (16:9), (John 3:16)", {})):
        assert "as it is written" not in encode(bridge, text, **options)[1]


@check
def marks_that_are_none_here_are_told_of():
    """In the report and the log of ours, and in the log of a stock node, which has no switches to name."""
    bridge = connected("bert")
    lora, embedding, left_out = "<lora:style:0.8>", "embedding:style", "BREAK is left out"
    for text, options, told in (
        (f"a red circle {lora}", {}, f"{lora} is read as it is written"),
        (f"a red circle, {embedding}", {}, f"{embedding} is read as it is written"),
        ("a red circle BREAK two elephants", {}, f"{left_out}: it begins a piece where long_prompts is chunk"),
        ("a red circle BREAK two elephants", {"long_prompts": "chunk"}, ""),
        ("a <red> circle", {}, ""),
    ):
        with Lines() as lines:
            _, report = encode(bridge, text, **options)
        assert bool(told) == bool(lines) and told in report and told in "".join(lines), (text, report, lines)
        with Lines() as lines:
            stock.CLIPTextEncode().encode(bridge.clip, text)
        assert told.partition(":")[0] in "".join(lines), (text, lines)


@check
def words_without_a_token_are_told_of():
    """The small models here have a token for every byte; BERT's and T5's have none for most of Unicode."""
    import tokenizers
    import transformers

    words = {"[UNK]": 0, "[SEP]": 1, "[PAD]": 2, "red": 3, "circle": 4}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    recipe = replace(connected("bert").config.prompt, template="{prompt}")
    for end, told in (("[SEP]", "no token for 'rote', 'kugel', and hears"), ("[UNK]", "")):  # CLIP's unknown is its end
        names = {"unk_token": "[UNK]", "eos_token": end, "pad_token": "[PAD]"}
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names)
        text = "rote red kugel rote"
        piece = prompting_.Piece(prompting_.Prompt.plain(text), recipe, tokens_.tokenize(tokenizer, [text], recipe))
        said = prompting_.unknown(tokenizer, [piece])
        assert told in said and bool(told) == bool(said), said
        encoder, mask = SimpleNamespace(tokenizer=tokenizer), torch.ones(recipe.max_length, dtype=torch.bool)
        kinds = [t.kind for t in tokens_of_.context_tokens(encoder, [piece], [mask], [mask.float()]).tokens[:4]]
        assert kinds == (
            ["unknown", "prompt", "unknown", "unknown"] if told else ["special", "prompt", *["special"] * 2]
        )


@check
def a_long_prompt_is_cut_chunked_or_heard_whole():
    bridge = connected("bert")
    (short, cut), (pieces, chunked), (whole, full) = (
        encode(bridge, LONG, long_prompts=way) for way in ("cut", "chunk", "full length")
    )
    assert short.shape[1] == 16 and "were cut off" in cut and "candy" in cut, cut
    texts = heard(bridge, LONG, long_prompts="chunk").texts
    assert " ".join(texts) == LONG and len(texts) > 1 and chunked.startswith(f"{len(texts)} pieces, "), (texts, chunked)
    assert "cut off" not in chunked + full
    many = "two elephants in the forest (with a candy) " * 12
    told = heard(bridge, many, long_prompts="chunk").texts
    assert encode(bridge, many, long_prompts="chunk")[1].startswith(f"{len(told)} pieces, ")  # none of a space alone
    torch.testing.assert_close(pieces, torch.cat([encode(bridge, text)[0] for text in texts], dim=1))
    length = whole.shape[1]
    assert f"heard at {length} tokens, the bridge was trained with 16" in full, full
    tokens = [token for token in heard(bridge, LONG, long_prompts="full length").tokens if token.span]
    assert length > 16 and "".join(LONG[slice(*token.span)] for token in tokens).replace(" ", "") == LONG.replace(
        " ", ""
    )
    for way in ("chunk", "full length"):
        assert torch.equal(encode(bridge, "a circle", long_prompts=way)[0], encode(bridge, "a circle")[0])
    beyond, report = encode(bridge, f"{LONG} " * 8, long_prompts="full length")
    assert beyond.shape[1] == 128 and "were cut off" in report, report


@check
def break_ends_a_piece():
    bridge = connected("bert")
    joined, report = encode(
        bridge, "a red circle BREAK a (blue:1.3)  BREAK\nsquare", long_prompts="chunk", weights=True
    )
    parts = ("a red circle", "a (blue:1.3)", "square")
    torch.testing.assert_close(joined, torch.cat([encode(bridge, part, weights=True)[0] for part in parts], dim=1))
    assert report.startswith("3 pieces, ")
    assert encode(bridge, "a red BREAK circle")[0].shape[1] == 16
    assert encode(bridge, "BREAK BREAKs", long_prompts="chunk")[0].shape[1] == 16
    assert torch.equal(encode(bridge, " BREAK ", long_prompts="chunk")[0], encode(bridge, "")[0])


@check
def a_word_longer_than_a_piece_is_broken_and_a_template_too_long_is_refused():
    bridge = connected("bert")
    word = "redcirclebluesquare" * 4
    assert "".join(heard(bridge, word, long_prompts="chunk").texts) == word
    wide = "two elephants in the forest with a candy left of it: {prompt}"
    refused(["template", "16"], lambda: encode(bridge, word, long_prompts="chunk", template=wide))


@check
def the_template_is_shown_and_can_be_another():
    bridge = connected("bert")
    trained, report = encode(bridge, "a red circle")
    assert report.endswith("template: '{prompt}, best quality'"), report
    other, report = encode(bridge, "a red circle", template="see {prompt}")
    assert "template: 'see {prompt}'; the bridge was trained with '{prompt}, best quality'" in report, report
    recipe = replace(bridge.config.prompt, template="see {prompt}")
    expected = replace(bridge, config=replace(bridge.config, prompt=recipe))
    assert torch.equal(other, encode(expected, "a red circle")[0]) and not torch.equal(other, trained)
    assert torch.equal(encode(bridge, "a red circle", template="  ")[0], trained)
    for wrong in ("no place", "{prompt} and {prompt}"):
        refused(["{prompt}", "once", wrong], lambda wrong=wrong: encode(bridge, "a", template=wrong))


@check
def a_prompt_that_was_encoded_before_costs_nothing():
    bridge = connected("bert")
    passes = passes_of(bridge)
    first = context(bridge)
    assert len(passes) == 1
    comfy.model_management.unload_all_models()
    assert torch.equal(context(bridge), first) and len(passes) == 1
    assert not comfy.model_management.loaded_models()
    conditioning, _ = bridge.encode("a")
    conditioning[0][1]["mine"] = 1
    conditioning.append("mine")
    again, _ = bridge.encode("a")
    assert len(again) == 1 and "mine" not in again[0][1]


@check
def whatever_a_conditioning_depends_on_is_encoded_anew():
    bridge = connected("bert")
    passes = passes_of(bridge)
    told = [("a red circle", {})]
    told += [("a red circles", {}), ("a red circle", {"weights": True}), ("a red circle", {"template": "{prompt}!"})]
    told += [("a red circle", {"long_prompts": "chunk"}), ("a red circle", {"long_prompts": "full length"})]
    for _ in range(2):
        for text, options in told:
            encode(bridge, text, **options)
        assert len(passes) == len(told)
    key = bridge._state()
    bridge.patcher.add_patches({"model.encoder.layer.0.attention.self.query.weight": (torch.zeros(32, 32),)}, 0.5)
    assert bridge._state() != key
    encode(bridge, "a red circle")
    assert len(passes) == len(told) + 1
    others = [replace(bridge, stamp="another"), replace(bridge, name="another")]
    others += [connected("bert", strength=0.5), connected("bert", language_model("bert", torch.bfloat16))]
    others += [replace(bridge, config=replace(bridge.config, prompt=replace(bridge.config.prompt, max_length=20)))]
    keys = [other._state() for other in (bridge, *others)]
    assert len(set(keys)) == len(keys)
    assert not any(len(other.prompts) for other in others)


@check
def what_is_remembered_is_bounded():
    bridge, limit = connected("bert"), prompt_cache_.LIMIT
    passes = passes_of(bridge)
    context_bytes = encode(bridge, "0")[0].nbytes
    try:
        prompt_cache_.LIMIT = 3 * context_bytes
        for text in ("1", "2", "0", "3"):
            encode(bridge, text)
        assert len(bridge.prompts) == 3 and bridge.prompts.nbytes <= prompt_cache_.LIMIT
        encode(bridge, "0")
        assert len(passes) == 4
        encode(bridge, "1")  # the one that was asked for longest ago
        assert len(passes) == 5
    finally:
        prompt_cache_.LIMIT = limit
