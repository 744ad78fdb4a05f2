"""Where tokens stand in a prompt, the weights that they take from it, and the rule by which these act."""

from __future__ import annotations

import pytest
import torch
from lavi_bridge.lavi_core.language.prompt_weights import aligned, spans, token_weights, weigh
from lavi_bridge.lavi_core.language.tokens import tokenize
from lavi_bridge.lavi_core.prompt import PromptRecipe

TEXT = "a red circle left of a blue square"
WEIGHTS = tuple(1.5 if 2 <= i < 5 else 1.0 for i in range(len(TEXT)))  # on "red"


@pytest.fixture(scope="module")
def tokenizer(language_folder):
    import transformers

    return transformers.AutoTokenizer.from_pretrained(language_folder("bert"))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("template", ["{prompt}", "draw {prompt}, please"])
@pytest.mark.parametrize("cut", [True, False])
def test_every_position_says_where_its_token_stands(tokenizer, side, template, cut):
    recipe = PromptRecipe(max_length=80, template=template, padding_side=side, cut_template=cut)
    tokens = tokenize(tokenizer, [TEXT], recipe)
    kept = tokens.ids[0] if tokens.keep is None else tokens.ids[0, tokens.keep[0]]
    found = spans(tokens)
    assert len(found) == len(kept)
    named = [(token, span) for token, span in zip(kept.tolist(), found, strict=True) if span is not None]
    for token, span in named:
        assert tokenizer.decode([token]).strip() == TEXT[slice(*span)].strip()
    assert "".join(TEXT[slice(*span)] for _, span in named).replace(" ", "") == TEXT.replace(" ", "")
    weights = token_weights(tokens, TEXT, WEIGHTS)
    red = [i for i, span in enumerate(found) if span is not None and TEXT[slice(*span)].strip() in "red"]
    assert red and "".join(TEXT[slice(*found[i])] for i in red).strip() == "red"
    assert weights.tolist() == [1.5 if i in red else 1.0 for i in range(len(found))]


def test_spans_of_what_was_cut_begin_where_the_rest_ends(tokenizer):
    report = tokenize(tokenizer, [TEXT], PromptRecipe(max_length=6, template="{prompt}.")).reports[0]
    assert report.cut == len(report.cut_spans) > 0 and len(report.spans) == report.used == 6
    heard = [span for span in report.spans if span is not None]
    assert heard[-1][1] <= report.cut_spans[0][0] and report.cut_spans[-1][1] == len(TEXT)
    assert TEXT[report.cut_spans[0][0] :].strip() == report.cut_text


def test_a_tokenizer_without_offsets_takes_no_weights():
    import transformers

    tokens = tokenize(transformers.ByT5Tokenizer(), ["sea"], PromptRecipe(max_length=8))
    assert spans(tokens) == [None] * 8
    assert token_weights(tokens, "sea", (1.0,) * 3).tolist() == [1.0] * 8
    with pytest.raises(ValueError, match="where its tokens stand"):
        token_weights(tokens, "sea", (1.0, 2.0, 1.0))


def test_weights_move_a_token_away_from_the_empty_prompt():
    context = torch.tensor([[[1.0, 2.0], [3.0, 5.0], [7.0, 7.0]]])
    empty = torch.tensor([[[0.0, 0.0], [1.0, 1.0], [2.0, 3.0]]])
    weighed = weigh(context, empty, torch.tensor([1.0, 2.0, 0.0]))
    assert weighed.tolist() == [[[1.0, 2.0], [5.0, 9.0], [2.0, 3.0]]]


def test_one_weight_of_one_is_exact():
    torch.manual_seed(0)
    context, empty = torch.randn(1, 9, 5), 1e6 * torch.randn(1, 9, 5)
    weights = torch.tensor([1.0, 1.0, 1.3] * 3)
    assert torch.equal(weigh(context, empty, weights)[:, weights == 1], context[:, weights == 1])


def test_positions_that_nobody_hears_take_the_nearest_one_that_is_heard():
    empty = torch.arange(5.0).reshape(1, 5, 1)
    heard = torch.tensor([False, True, True, False, False])
    assert aligned(empty, heard, 4).flatten().tolist() == [1, 1, 2, 2]
    assert aligned(empty, torch.ones(5, dtype=torch.bool), 7).flatten().tolist() == [0, 1, 2, 3, 4, 4, 4]
    assert aligned(empty, torch.zeros(5, dtype=torch.bool), 7).flatten().tolist() == [0, 1, 2, 3, 4, 4, 4]
