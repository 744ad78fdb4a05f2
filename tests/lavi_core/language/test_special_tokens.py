"""Special tokens that a person types are text; a template's stay control."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lavi_bridge.lavi_core.language.special_tokens import special_tokens
from lavi_bridge.lavi_core.language.tokens import tokenize
from lavi_bridge.lavi_core.prompt import PromptRecipe

from ..conftest import WORDS, write_tokenizer


def unigram(folder: Path) -> Any:
    """As T5's: the vocabulary holds the special tokens as pieces too."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.Unigram())
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    raw.train_from_iterator(
        [WORDS + " < / s >"], trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>")
    )
    raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def words(folder: Path) -> Any:
    from lavi_bridge.training.demo.start import tokenizer
    from lavi_bridge.training.shapebench import VOCABULARIES

    return tokenizer(VOCABULARIES["small"], 24)


TOKENIZERS = {"byte-level BPE": write_tokenizer, "unigram": unigram, "words": words}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return TOKENIZERS[request.param](tmp_path)


def prompt_ids(tokenizer: Any, prompt: str, template: str = "{prompt}") -> tuple[list[int], list[int]]:
    """(all real tokens, those of the prompt)"""
    batch = tokenize(tokenizer, [prompt], PromptRecipe(template=template, max_length=60, padding="longest"))
    ids, spans = batch.ids[0][batch.mask[0]].tolist(), batch.reports[0].spans
    return ids, [i for i, span in zip(ids, spans, strict=True) if span is not None]


def test_a_typed_special_token_is_text(tokenizer: Any):
    specials = special_tokens(tokenizer)
    unknown = tokenizer.unk_token_id
    plain = prompt_ids(tokenizer, "a red circle")[0]
    for token in specials:
        ids, typed = prompt_ids(tokenizer, f"a red {token} circle")
        assert not (set(typed) & set(specials.values())) - {unknown}, (token, typed)
        count = [sum(i == special for i in ids if special != unknown) for special in specials.values()]
        assert count == [sum(i == special for i in plain if special != unknown) for special in specials.values()]
        assert len(typed) > len(prompt_ids(tokenizer, "a red circle")[1])


def test_the_templates_stay_control(tokenizer: Any):
    token, index = tokenizer.pad_token, tokenizer.pad_token_id
    ids, typed = prompt_ids(tokenizer, f"a red {token} circle", f"{token} a {{prompt}} {token}")
    assert ids.count(index) == 2 and index not in typed
    plain = prompt_ids(tokenizer, "a red circle", f"{token} a {{prompt}} {token}")[0]
    head = plain.index(index) + 1
    assert ids[:head] == plain[:head] and ids[-2:] == plain[-2:]


def test_a_prompt_without_any_is_as_the_tokenizer_has_it(tokenizer: Any):
    assert prompt_ids(tokenizer, "a red circle")[0] == tokenizer("a red circle")["input_ids"]


def test_spans_are_those_of_the_prompt(tmp_path: Path):
    tokenizer = write_tokenizer(tmp_path)
    prompt = "a </s> circle"
    batch = tokenize(tokenizer, [prompt], PromptRecipe(template="<s> a glass {prompt} jar", max_length=60))
    spans = [span for span in batch.reports[0].spans if span is not None]
    assert "".join(prompt[slice(*span)] for span in spans).replace(" ", "") == prompt.replace(" ", "")
