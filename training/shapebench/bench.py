"""The benchmark: prompts, scores with intervals, the judge's own ceiling and chance.

Every function takes explicit integer seeds; the same seed gives the same bits on every machine with the same numpy.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.random import PCG64, Generator, SeedSequence

from .caption import caption
from .judge import Verdict, judge
from .render import render
from .scene import CANVAS, PromptSpec, Scene, sample_scene
from .vocabulary import Vocabulary

ASPECTS = ("count", "color", "shape", "texture", "bind", "relation", "correct")
BOOTSTRAP_SAMPLES = 2000
DRAWS_PER_PROMPT = 50  # how long to look for a caption not taken yet
Row = dict[str, float | int | tuple[float, float] | None]


def stream(seed: int, *labels: str | int) -> Generator:
    """An independent PCG64 stream for each seed and labels, so that no split ever shares its draws with another."""
    return Generator(PCG64(SeedSequence([seed, *(zlib.crc32(str(label).encode()) for label in labels)])))


def prompts(category: str, n: int, seed: int, vocabulary: Vocabulary, split: str = "test") -> list[tuple[str, Scene]]:
    """`n` (caption, scene). No caption comes twice while fresh ones are to be found; after that they repeat."""
    rng = stream(seed, "prompts", category, vocabulary.name, split)
    taken: set[str] = set()
    chosen: list[tuple[str, Scene]] = []
    misses = 0  # in a row; single objects of the small vocabulary have few captions
    while len(chosen) < n:
        scene = sample_scene(rng, category, vocabulary, split)
        text = caption(scene, rng, split, vocabulary)
        if text in taken and misses < DRAWS_PER_PROMPT:
            misses += 1
            continue
        if text not in taken:
            misses = 0
        taken.add(text)
        chosen.append((text, scene))
    return chosen


def score(images: Sequence[np.ndarray] | np.ndarray, scenes: Sequence[Scene | PromptSpec], seed: int = 0) -> Row:
    """Judge images[i] (uint8 [H W 3]) against scenes[i].

    Returns the mean of each of ASPECTS over the pictures whose prompt names it (None where none does), "n", and
    "interval": the bootstrap 95 % interval of "correct", resampling pictures.
    """
    if len(images) != len(scenes) or not len(scenes):
        raise ValueError(f"{len(images)} images for {len(scenes)} scenes; give one image for each scene, at least one")
    return summary([judge(image, scene) for image, scene in zip(images, scenes, strict=True)], seed)


def summary(verdicts: Sequence[Verdict], seed: int = 0) -> Row:
    """The table row of `verdicts`; see `score`."""
    row: Row = {}
    for aspect in ASPECTS:
        values = [getattr(verdict, aspect) for verdict in verdicts]
        named = [value for value in values if value is not None]
        row[aspect] = float(np.mean(named)) if named else None
    correct = np.array([verdict.correct for verdict in verdicts], np.float64)
    # The mean of n draws with replacement from yes/no answers is a binomial: the same bootstrap without the loop.
    draws = stream(seed, "bootstrap").binomial(len(correct), correct.mean(), BOOTSTRAP_SAMPLES) / len(correct)
    low, high = np.quantile(draws, (0.025, 0.975))
    row["interval"] = (float(low), float(high))
    row["n"] = len(correct)
    return row


def ceiling(category: str, n: int, seed: int, vocabulary: Vocabulary, split: str = "test", size: int = CANVAS) -> Row:
    """The score of true pictures: what a perfect model would get."""
    scenes = [scene for _, scene in prompts(category, n, seed, vocabulary, split)]
    return score([render(scene, size) for scene in scenes], scenes)


def chance(category: str, n: int, seed: int, vocabulary: Vocabulary, split: str = "test", size: int = CANVAS) -> Row:
    """The score of flawless pictures of other prompts: what a model gets that draws well and does not listen."""
    scenes = [scene for _, scene in prompts(category, n, seed, vocabulary, split)]
    rng = stream(seed, "chance", category, vocabulary.name, split)
    return score([render(sample_scene(rng, category, vocabulary, split), size) for _ in scenes], scenes)
