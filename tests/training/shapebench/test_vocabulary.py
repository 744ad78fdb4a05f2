"""The words and the splits: what is held out stays out."""

from __future__ import annotations

import numpy as np
import pytest
from lavi_bridge.training.shapebench import CATEGORIES, PALETTE, VOCABULARIES, caption, sample_scene, words

SAMPLES = 10_000


@pytest.fixture(params=list(VOCABULARIES), scope="module")
def vocabulary(request):
    return VOCABULARIES[request.param]


@pytest.fixture(scope="module")
def train(vocabulary):
    """Scenes and captions of the training split, all categories in turn."""
    rng = np.random.default_rng(11)
    scenes = [sample_scene(rng, CATEGORIES[i % len(CATEGORIES)], vocabulary) for i in range(SAMPLES)]
    return [(scene, caption(scene, rng, "train", vocabulary)) for scene in scenes]


def test_every_concept_has_words_of_each_kind_and_no_word_serves_two(vocabulary):
    names = [name for concept in vocabulary.concepts for name in (concept.name, *concept.synonyms, *concept.held_out)]
    assert len(names) == len(set(names))
    for concept in vocabulary.concepts:
        assert len(concept.synonyms) >= 1 and len(concept.held_out) >= 2
    assert {color.name for color in vocabulary.colors} <= set(PALETTE)


def test_every_held_out_synonym_has_a_word_that_training_never_shows(vocabulary):
    known = set(words(vocabulary))
    for concept in vocabulary.concepts:
        for name in concept.held_out:
            assert set(name.split()) - known, f"{name!r} could be learnt word by word"


def test_no_training_word_is_made_from_a_held_out_one(vocabulary):
    """Language models see pieces of words: "checkbox" would teach "box"."""
    plain = {word for concept in vocabulary.concepts for word in concept.name.split()}
    grammar = plain | {"a", "an", "on", "to", "the", "side", "of"}
    held = {part for c in vocabulary.concepts for name in c.held_out for part in name.split()} - grammar
    stems = {word[:5] for word in held if len(word) >= 5} - plain  # "right-hand" has the plain word's
    taught = {word for c in vocabulary.concepts for name in c.synonyms for word in name.split()}
    wrong = {word for word in taught if word[:5] in stems or any(piece in word for piece in held)}
    assert not wrong


def test_training_captions_use_the_listed_words_and_all_of_them(vocabulary, train):
    seen = {word for _, text in train for word in text.split()}
    assert seen <= set(words(vocabulary))
    assert set(words(vocabulary)) - seen <= {"an"}  # the small vocabulary has no word that takes it


def test_training_captions_never_hold_a_held_out_synonym(vocabulary, train):
    held = [f" {name} " for concept in vocabulary.concepts for name in concept.held_out]
    for _, text in train:
        assert not [name for name in held if name in f" {text} "]


def test_training_scenes_never_show_a_held_out_pair(vocabulary, train):
    shown = {(thing.color, thing.shape) for scene, _ in train for thing in scene.objects}
    assert shown == set(vocabulary.pairs) - vocabulary.held_out_pairs


def test_about_one_pair_in_eight_is_held_out(vocabulary):
    assert len(vocabulary.held_out_pairs) * 8 == len(vocabulary.pairs)


def test_a_synonym_stands_for_the_set_share_of_words(vocabulary, train):
    reds = [text for scene, text in train if scene.category == "single" and scene.objects[0].color == "red"]
    share = 1 - np.mean(["red" in text.split() for text in reds])
    assert abs(share - vocabulary.synonym_probability) < 0.1


@pytest.mark.parametrize("category", CATEGORIES)
def test_the_pairs_split_always_shows_a_held_out_pair(vocabulary, category):
    rng = np.random.default_rng(5)
    for _ in range(200):
        scene = sample_scene(rng, category, vocabulary, "pairs")
        assert any((thing.color, thing.shape) in vocabulary.held_out_pairs for thing in scene.objects)


@pytest.mark.parametrize("category", CATEGORIES)
def test_the_synonyms_split_replaces_every_concept_word(vocabulary, category):
    rng = np.random.default_rng(6)
    # "on the left side of" is new as a whole; left and right have no other plain words.
    grammar = {"a", "an", "and", "picture", "of", "to", "the", "left", "right"}
    trained = set(words(vocabulary)) - grammar
    for _ in range(300):
        scene = sample_scene(rng, category, vocabulary, "synonyms")
        text = caption(scene, rng, "synonyms", vocabulary)
        assert not trained & set(text.split()), text


def test_an_unknown_name_is_refused_with_the_known_ones(vocabulary):
    with pytest.raises(ValueError, match=r"mauve.*red"):
        vocabulary.concept("mauve")
    with pytest.raises(ValueError, match=r"colour.*single"):
        sample_scene(np.random.default_rng(0), "colour", vocabulary)
    with pytest.raises(ValueError, match=r"dev.*train"):
        sample_scene(np.random.default_rng(0), "single", vocabulary, "dev")
    with pytest.raises(ValueError, match=r"vocabulary 'large'; known: small, full"):
        VOCABULARIES["large"]
