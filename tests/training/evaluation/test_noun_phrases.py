"""The things that a prompt names: by rules, and from what spaCy says of each word."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
from lavi_bridge.training.evaluation.metric_weights import Weights
from lavi_bridge.training.evaluation.metrics.spatial import PLACES
from lavi_bridge.training.evaluation.noun_phrases import Rules, Spacy, splitter


@pytest.mark.parametrize(
    ("text", "phrases", "plain"),
    [
        (
            "the soft, fluffy pillow and the hard, wooden desk",
            ["the soft, fluffy pillow", "the hard, wooden desk"],
            "the pillow and the desk",
        ),
        ("a soft, warm, fluffy cat", ["a soft, warm, fluffy cat"], "a cat"),
        ("a cat, a dog and a bird", ["a cat", "a dog", "a bird"], "a cat, a dog and a bird"),
        ("a cat, dog and bird", ["a cat", "dog", "bird"], "a cat, dog and bird"),
        ("two toilet stalls, one blue and the other orange", ["two toilet stalls", "one blue", "orange"], None),
        ("Kitchen scene, black sink", ["Kitchen scene", "black sink"], "scene, sink"),
        ("the sun sank, coloring the sky", ["the sun sank", "the sky"], None),
        ("a big  red ball and a red ball", ["a big red ball", "a red ball"], "a ball and a ball"),
    ],
)
def test_a_comma_joins_adjectives_alone(text: str, phrases: list[str], plain: str | None) -> None:
    assert Rules().phrases(text) == phrases
    assert plain is None or Rules().without_adjectives(text) == plain


def test_without_a_model_of_spacys_the_rules_split() -> None:
    assert splitter(Weights()) == Rules()


class Doc(list):
    noun_chunks: Sequence[SimpleNamespace] = ()


def spacy(tagged: str, *chunks: str) -> Spacy:
    """A model that says of any text what ``tagged`` says: words with their tags, as in "the/DET cat/NOUN"."""
    pairs = [word.rpartition("/") for word in tagged.split()]
    doc = Doc(SimpleNamespace(text=text, pos_=tag, text_with_ws=f"{text} ") for text, _, tag in pairs)
    doc.noun_chunks = [SimpleNamespace(text=text) for text in chunks]
    return Spacy(lambda text: doc, "spacy stub 1")


def test_spacys_chunks_are_the_phrases_but_for_those_that_compbench_leaves_out() -> None:
    left_out, kept = ("top", "the side", "the left", "the right"), ("The cat", "the top", "the bottom", "a dog")
    assert spacy("", *left_out, *kept).phrases("") == list(kept)


CAT = "the/DET soft/ADJ cat/NOUN is/AUX on/ADP the/DET left/NOUN of/ADP two/NUM Bobs/PROPN"


def test_spacys_tags_tell_nouns_and_adjectives() -> None:
    assert spacy(CAT).nouns("") == ["cat", "left"]
    assert spacy(CAT).without_adjectives("") == "the cat is on the left of two Bobs"


@pytest.mark.parametrize(
    ("tagged", "nouns"),
    [
        ("a/DET dog/NOUN and/CCONJ Tom/PROPN sit/VERB next/ADV to/ADP a/DET tree/NOUN", ["Tom", "tree"]),
        ("a/DET dog/NOUN near/ADP Ann/PROPN and/CCONJ a/DET tree/NOUN", ["dog", "tree"]),
        ("a/DET dog/NOUN near/ADP Mary/PROPN Ann/PROPN ./PUNCT", ["dog", "Ann"]),
        ("a/DET dog/NOUN near/ADP Ann/PROPN", ["dog"]),  # T2I-CompBench wants a word after the name
        (CAT + " ./PUNCT", ["cat", "Bobs"]),  # "on the left" is the place, its "left" is no thing
        ("a/DET dog/NOUN above/ADP a/DET tree/NOUN", []),
        ("a/DET cat/NOUN near/ADP a/DET dog/NOUN near/ADP a/DET tree/NOUN", ["cat", "dog", "dog", "tree"]),
    ],
)
def test_spacys_nouns_around_a_place(tagged: str, nouns: list[str]) -> None:
    assert spacy(tagged).around("", PLACES) == nouns
