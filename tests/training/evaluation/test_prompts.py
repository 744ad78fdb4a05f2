"""Files of prompts, ShapeBench's captions read back, and the things that a prompt names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lavi_bridge.training.evaluation.metrics.spatial import relation_of
from lavi_bridge.training.evaluation.noun_phrases import Rules
from lavi_bridge.training.evaluation.prompts import Prompt, read_prompts
from lavi_bridge.training.evaluation.shapebench_captions import spec_of, table_of
from lavi_bridge.training.shapebench import CATEGORIES, SPLITS, VOCABULARIES, PromptSpec, prompts


def test_text_table_and_genevals_objects(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("a cat\n\n  a dog \n")
    (tmp_path / "texture_val.txt").write_text("a metal bench\tmore\n")
    (tmp_path / "complex_val_action.txt").write_text("a cat sleeps\n")
    (tmp_path / "t.tsv").write_text("a bird\tcolor\na fish\n")
    geneval = {"tag": "two_object", "prompt": "a cup", "include": [{"class": "cup", "count": 1}]}
    (tmp_path / "g.jsonl").write_text(json.dumps(geneval) + "\n")
    names = ("plain.txt", "texture_val.txt", "complex_val_action.txt", "t.tsv", "g.jsonl")
    assert read_prompts([tmp_path / name for name in names], "short") == [
        Prompt("a cat", "short"),
        Prompt("a dog", "short"),
        Prompt("a metal bench", "texture"),
        Prompt("a cat sleeps", "complex", {"complex": "action"}),
        Prompt("a bird", "color"),
        Prompt("a fish", "short"),
        Prompt("a cup", "two_object", {"tag": "two_object", "include": [{"class": "cup", "count": 1}]}),
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "\n\n", "no prompt in"),
        ("a.tsv", "a cat\tcolor\tmore\n", "line 1: it has 3 columns"),
        ("a.jsonl", '{"prompt": "a"}\n{"text": "b"}\n', "line 2: it is no object"),
        ("a.jsonl", "{\n", "line 1: it is not readable as JSON"),
        ("a.csv", "a\n", "unknown kind of prompt file '.csv'; known: .txt, .tsv, .jsonl"),
    ],
)
def test_other_files_are_refused_with_their_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_prompts([tmp_path / name])


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_every_caption_of_shapebench_is_read_back(vocabulary: str) -> None:
    for split in SPLITS:
        for category in CATEGORIES:
            for text, scene in prompts(category, 30, 7, VOCABULARIES[vocabulary], split):
                assert spec_of(text) == scene.spec, text


@pytest.mark.parametrize("text", ["", "a cat", "a red cat", "red", "a red circle and a dog", "two red circle"])
def test_other_texts_are_none_of_shapebench(text: str) -> None:
    assert spec_of(text) is None


def test_capitals_and_a_full_stop_are_no_other_prompt() -> None:
    assert spec_of("A red circle.") == PromptSpec((("red", "circle", None),))


def test_the_table_names_category_and_split() -> None:
    lines = [line.split("\t") for line in table_of(["color", "synonyms: color"], 3, 0).splitlines()]
    assert [category for _, category in lines] == ["ShapeBench color"] * 3 + ["ShapeBench synonyms: color"] * 3
    with pytest.raises(ValueError, match="no prompts 'colour'; known: single, color"):
        table_of(["colour"], 3, 0)


# T2I-CompBench's prompts, and the noun chunks that spaCy's en_core_web_sm is known to give for such.
PHRASES = {
    "a green bench and a blue bowl": ["a green bench", "a blue bowl"],
    "A black and white cat": ["A black", "white cat"],  # spaCy keeps it whole: the rules' limit
    "a metallic car and a leather shoe": ["a metallic car", "a leather shoe"],
    "a man on the right of a dog": ["a man", "a dog"],
    "a cat next to two chairs": ["a cat", "two chairs"],
    "the fluffy cat is sitting on the soft cushion": ["the fluffy cat", "the soft cushion"],
    "a gold ring in a red box": ["a gold ring", "a red box"],
}


@pytest.mark.parametrize("text", PHRASES)
def test_the_rules_split_as_written(text: str) -> None:
    assert Rules().phrases(text) == PHRASES[text]


def test_nouns_and_texts_without_adjectives() -> None:
    text = "a big red ball on the left of two wooden chairs"
    assert Rules().nouns(text) == ["ball", "chairs"]
    assert Rules().without_adjectives(text) == "a ball on the left of two chairs"
    assert relation_of(text) == "on the left of"
    assert relation_of("a cat and a dog") is None
