"""Captions: the words for a scene, and the set of words that training captions can contain."""

from __future__ import annotations

from collections.abc import Callable

from numpy.random import Generator

from .scene import SPLITS, Object, Scene
from .vocabulary import VOCABULARIES, Concept, Vocabulary

# A caption is frame.format(noun phrases); `lead` goes before each noun phrase: an article, a number or nothing.
_FRAMES = (("{}", "a"), ("{}", "one"), ("a picture of {}", "a"), ("{}", ""))
_COUNT_FRAMES = ("{}", "a picture of {}")
_CONJUNCTION = "and"


def caption(scene: Scene, rng: Generator, split: str = "train", vocabulary: Vocabulary = VOCABULARIES["full"]) -> str:
    """The prompt of `scene`: lower case, words parted by single spaces.

    "train" takes a training synonym for about 3 in 10 concept words, "test" and "pairs" take plain names, "synonyms"
    takes a held-out synonym for every concept word. The same state of `rng` gives the same caption.
    """
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; the splits are {', '.join(SPLITS)}")

    def say(concept_name: str) -> str:
        return _word(vocabulary.concept(concept_name), rng, split, vocabulary.synonym_probability)

    if scene.category == "count":
        frame = _COUNT_FRAMES[int(rng.integers(len(_COUNT_FRAMES)))]
        number = len(scene.objects)
        noun = f"{say(scene.objects[0].color)} {say(scene.objects[0].shape)}"
        return frame.format(f"{say(vocabulary.counts[number - 1].name)} {noun if number == 1 else plural(noun)}")

    frame, lead = _FRAMES[int(rng.integers(len(_FRAMES)))]
    phrases = [_phrase(thing, scene.names_texture, lead, say) for thing in scene.objects]
    joint = say(scene.relation) if scene.relation else _CONJUNCTION
    return frame.format(f" {joint} ".join(phrases))


def words(vocabulary: Vocabulary) -> tuple[str, ...]:
    """Every word a training caption over `vocabulary` can contain, sorted: the table of a word-level tokenizer."""
    found = {"a", "an", _CONJUNCTION, "one"}
    for frame in (*_COUNT_FRAMES, *(frame for frame, _ in _FRAMES)):
        found.update(frame.format("").split())
    for concept in vocabulary.concepts:
        for name in (concept.name, *concept.synonyms):
            found.update(name.split())
    for shape in vocabulary.shapes:
        found.update(word for name in (shape.name, *shape.synonyms) for word in plural(name).split())
    return tuple(sorted(found))


def plural(noun: str) -> str:
    """The plural of an English noun phrase, by the regular rule that every shape word here follows."""
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def _phrase(thing: Object, names_texture: bool, lead: str, say: Callable[[str], str]) -> str:
    adjectives = [say(thing.texture)] if names_texture else []
    noun = " ".join([*adjectives, say(thing.color), say(thing.shape)])
    if lead == "a":
        return f"{'an' if noun[0] in 'aeio' else 'a'} {noun}"  # the one word with u, "uniform", takes an a
    return f"{say(lead)} {noun}" if lead else noun


def _word(concept: Concept, rng: Generator, split: str, synonym_probability: float) -> str:
    if split == "synonyms":
        options = concept.held_out
    elif split == "train" and rng.random() < synonym_probability:
        options = concept.synonyms
    else:
        return concept.name
    return options[int(rng.integers(len(options)))]
