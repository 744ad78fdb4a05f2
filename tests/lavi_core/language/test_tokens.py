"""The recipe's rules: template, truncation, padding, and what the report says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.lavi_core.language.tokens import tokenize
from lavi_bridge.lavi_core.prompt import PromptRecipe

BOS, EOS = 1, 2


@pytest.fixture(params=["offsets", "probes"])
def tokenizer(request, language_folder):
    """A tokenizer that tells offsets, and one that does not (a byte tokenizer, as ByT5's)."""
    import transformers

    if request.param == "probes":
        return transformers.ByT5Tokenizer()
    return transformers.AutoTokenizer.from_pretrained(language_folder("bert"))


def text_of(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_plain_prompts_are_tokenised_as_transformers_does(tokenizer):
    prompts = ["a red circle left of a blue square", "sea", ""]
    for length in (6, 12, 40):
        batch = tokenize(tokenizer, prompts, PromptRecipe(max_length=length))
        theirs = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        assert torch.equal(batch.ids, theirs["input_ids"])
        assert torch.equal(batch.mask, theirs["attention_mask"].bool())
        assert batch.keep is None


def test_left_padding_whatever_the_tokenizers_default(tokenizer):
    assert tokenizer.padding_side == "right"
    right = tokenize(tokenizer, ["sea"], PromptRecipe(max_length=12))
    left = tokenize(tokenizer, ["sea"], PromptRecipe(max_length=12, padding_side="left"))
    assert torch.equal(left.ids[left.mask], right.ids[right.mask])
    assert left.mask[0, -1] and not left.mask[0, 0] and right.mask[0, 0]
    tokenizer.padding_side = "left"
    assert torch.equal(tokenize(tokenizer, ["sea"], PromptRecipe(max_length=12)).ids, right.ids)
    tokenizer.padding_side = "right"


def test_longest_pads_to_the_longest(tokenizer):
    batch = tokenize(tokenizer, ["sea", "a red circle"], PromptRecipe(max_length=40, padding="longest"))
    assert batch.mask[1].all() and batch.ids.shape[1] == int(batch.mask[1].sum())
    assert [r.padded for r in batch.reports] == [int((~batch.mask[0]).sum()), 0]


TEMPLATE = "describe the image : {prompt} , best quality"


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_template_is_cut_and_the_prompt_left(tokenizer, side):
    recipe = PromptRecipe(template=TEMPLATE, max_length=70, cut_template=True, padding_side=side)
    prompts = ["a red circle", "two elephants in the forest", "{prompt} $A"]
    batch = tokenize(tokenizer, prompts, recipe)
    for row, prompt in enumerate(prompts):
        assert text_of(tokenizer, batch.ids[row, batch.mask[row]]) == TEMPLATE.replace("{prompt}", prompt)
        assert text_of(tokenizer, batch.ids[row, batch.mask[row] & batch.keep[row]]) == prompt
    assert tokenize(tokenizer, prompts, PromptRecipe(template=TEMPLATE, max_length=70)).keep is None


def test_an_empty_prompt_in_a_template_still_says_something(tokenizer):
    recipe = PromptRecipe(template=TEMPLATE, max_length=70, cut_template=True, add_special_tokens=False)
    batch = tokenize(tokenizer, [""], recipe)
    assert int((batch.keep & batch.mask).sum()) == 1


def test_nothing_at_all_still_says_something(tokenizer):
    for padding in ("longest", "max_length"):
        recipe = PromptRecipe(max_length=5, padding=padding, add_special_tokens=False)
        batch = tokenize(tokenizer, [""], recipe)
        assert int(batch.mask.sum()) == 1
        batch = tokenize(tokenizer, ["", "sea"], replace(recipe, no_token="masked"))
        assert int(batch.mask[0].sum()) == 0 < int(batch.mask[1].sum())
        assert batch.reports[0].used == 0


def test_truncation_cuts_the_prompt_and_reports_it(tokenizer):
    long = "two elephants in the forest a glass jar full of colorful candy"
    full = int(tokenize(tokenizer, [long], PromptRecipe(template=TEMPLATE, max_length=200)).mask.sum())
    recipe = PromptRecipe(template=TEMPLATE, max_length=full - 6, cut_template=True)
    batch = tokenize(tokenizer, [long, "sea"], recipe)
    kept = text_of(tokenizer, batch.ids[0])
    assert kept.startswith("describe the image : two elephants") and kept.endswith(", best quality")
    assert batch.ids[0, -1] == tokenizer.eos_token_id
    report = batch.reports[0]
    assert (report.used, report.cut, report.padded) == (full - 6, 6, 0)
    prompt_left = text_of(tokenizer, batch.ids[0, batch.keep[0] & batch.mask[0]])
    assert (prompt_left + " " + report.cut_text).replace(" ", "") == long.replace(" ", "")
    assert str(report) == f"{full - 6} tokens, 0 padding; 6 prompt tokens were cut off: {report.cut_text!r}"
    assert batch.reports[1].cut == 0 and "cut off" not in str(batch.reports[1])


def test_a_template_too_long(tokenizer):
    with pytest.raises(
        ValueError, match=r"special tokens take \d+ tokens, the bridge hears 5 \(max_length\): shorten the template"
    ):
        tokenize(tokenizer, ["sea"], PromptRecipe(template=TEMPLATE, max_length=5))


def test_no_prompt(tokenizer):
    for nothing in ([], "sea"):
        with pytest.raises(ValueError, match="a list of at least one prompt is needed"):
            tokenize(tokenizer, nothing, PromptRecipe())


def test_the_pad_token_rule(language_folder):
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(language_folder("llama"))  # it has no pad token
    unknown = tokenizer.convert_tokens_to_ids("<unk>")
    assert tokenize(tokenizer, ["sea"], PromptRecipe(max_length=20)).ids[0, -1] == unknown
    assert tokenize(tokenizer, ["sea"], PromptRecipe(max_length=20, pad_token="<s>")).ids[0, -1] == BOS
    with pytest.raises(ValueError, match=r"pads with '\[PAD\]', which is no token"):
        tokenize(tokenizer, ["sea"], PromptRecipe(max_length=20, pad_token="[PAD]"))
    tokenizer.unk_token = None
    assert tokenize(tokenizer, ["sea"], PromptRecipe(max_length=20)).ids[0, -1] == EOS


@pytest.mark.parametrize("kind", ["llama", "bert", "t5"])
def test_cut_states_are_the_prompts_own(kind, language_folder):
    encoder = TextEncoder.load(language_folder(kind))
    prompts = ["a red circle", "two elephants in the forest , a rabbit", ""]
    whole = PromptRecipe(template=TEMPLATE, max_length=60)
    cut = PromptRecipe(template=TEMPLATE, max_length=60, cut_template=True)
    tokens = encoder.tokenize(prompts, cut)
    ours, theirs = encoder(tokens, cut), encoder(encoder.tokenize(prompts, whole), whole)
    assert ours.states.shape[1] < theirs.states.shape[1]
    for row in range(len(prompts)):
        assert torch.equal(ours.states[row, ours.mask[row]], theirs.states[row, tokens.keep[row] & tokens.mask[row]])


def test_a_tokenizer_of_another_model(language_folder):
    encoder = TextEncoder.load(language_folder("bert"))
    encoder.tokenizer.add_tokens(["<new>"])
    with pytest.raises(ValueError, match="its embedding has 378 rows; the tokenizer belongs to another model"):
        encoder.tokenize(["<new>"], PromptRecipe(max_length=20))


def test_white_space_around_a_prompt_is_taken_off_where_the_recipe_says_so(tokenizer):
    prompt, template = " \n a red circle\n\n", "describe the image : {prompt}\nAnswer :"
    recipe = PromptRecipe(template=template, max_length=70, cut_template=True)
    plain, kept = tokenize(tokenizer, ["a red circle"], recipe), tokenize(tokenizer, [prompt], recipe)
    stripped = tokenize(tokenizer, [prompt, "a red circle"], replace(recipe, strip=True))
    assert torch.equal(stripped.ids, plain.ids.expand(2, -1)) and torch.equal(stripped.keep, plain.keep.expand(2, -1))
    assert not torch.equal(kept.ids, plain.ids)
    spans = [span for span in stripped.reports[0].spans if span is not None]
    if spans:  # of the prompt as it was given
        assert prompt[spans[0][0] : spans[-1][1]].strip() == "a red circle"
    short = tokenize(tokenizer, [prompt], replace(recipe, strip=True, max_length=plain.reports[0].used - 2)).reports[0]
    assert short.cut == 2 and "a red circle".endswith(short.cut_text)


def test_padding_that_the_adapter_hears_is_not_trimmed(tokenizer):
    recipe = PromptRecipe(max_length=40, vision_mask=True)
    batch = tokenize(tokenizer, ["sea"], recipe)
    assert batch.trimmed(recipe).ids.shape[1] < 40
    assert batch.trimmed(replace(recipe, adapter_mask=False)).ids.shape[1] == 40
    assert replace(recipe, padding="longest", adapter_mask=False).varies_with_batch
