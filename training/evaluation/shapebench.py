"""A pipeline's ShapeBench scores, beside the judge's ceiling and chance."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..models.pipeline import Pipeline
from ..shapebench import CATEGORIES, VOCABULARIES, Scene, Verdict, ceiling, chance, judge, prompts
from ..shapebench.bench import summary


@dataclass(frozen=True)
class Row:
    """One line of the table: prompts of a category in a split (see ``shapebench.SPLITS``)."""

    name: str
    category: str
    split: str = "test"


ROWS = (
    *(Row(category, category) for category in CATEGORIES),
    Row("unseen pairs", "single", "pairs"),
    Row("synonyms: single", "single", "synonyms"),
    Row("synonyms: color", "color", "synonyms"),
    Row("synonyms: texture", "texture", "synonyms"),
    Row("synonyms: spatial", "spatial", "synonyms"),
)


GROUPS = (
    ("seen words", ("single", "color", "shape", "texture", "count", "spatial", "complex")),
    ("unseen pairs", ("unseen pairs",)),
    ("held-out synonyms", ("synonyms: single", "synonyms: color", "synonyms: texture", "synonyms: spatial")),
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a score depends on besides the models. prompts: of each row, the same for every pipeline."""

    prompts: int = 200
    seed: int = 0
    vocabulary: str = "small"
    steps: int = 20
    guidance: float = 3.0


class Judged(NamedTuple):
    """images: uint8 [B H W 3], one for each prompt of the row."""

    row: Row
    images: np.ndarray
    verdicts: list[Verdict]


def judged(
    pipeline: Pipeline, settings: Settings, rows: Sequence[Row] = ROWS, progress: Callable[[int], object] | None = None
) -> Iterator[Judged]:
    """Draw and judge, row by row. Guidance and steps are the settings'."""
    for row in rows:
        captions, scenes = bench(row, settings)
        images = pipeline.draw(captions, seed=settings.seed, steps=settings.steps, guidance=settings.guidance)
        yield Judged(row, images, [judge(image, scene) for image, scene in zip(images, scenes, strict=True)])
        if progress is not None:
            progress(len(captions))


def evaluate(
    pipeline: Pipeline, settings: Settings, rows: Sequence[Row] = ROWS, progress: Callable[[int], object] | None = None
) -> dict[str, dict]:
    """Row name -> ``shapebench.score`` of drawn pictures."""
    return {found.row.name: summary(found.verdicts) for found in judged(pipeline, settings, rows, progress)}


def bounds(settings: Settings, rows: Sequence[Row] = ROWS) -> dict[str, tuple[float, float]]:
    """Row name -> (ceiling, chance): the judge's score of true pictures, and of good pictures of other prompts."""
    return {row.name: _limits(row, settings.prompts, settings.seed, settings.vocabulary) for row in rows}


@functools.cache
def _limits(row: Row, count: int, seed: int, vocabulary: str) -> tuple[float, float]:
    arguments = (row.category, count, seed + 1, VOCABULARIES[vocabulary], row.split)
    return _correct(ceiling(*arguments)), _correct(chance(*arguments))


def table(results: dict[str, dict[str, dict]], limits: dict[str, tuple[float, float]]) -> str:
    """Markdown: a line for each row, a column for each pipeline, "correct" with its 95 % interval."""
    names = list(results)
    lines = ["| prompts | " + " | ".join(names) + " | ceiling | chance |", "|---" * (len(names) + 3) + "|"]
    for row, (top, bottom) in limits.items():
        cells = [_cell(results[name][row]) for name in names]
        lines.append(f"| {row} | " + " | ".join(cells) + f" | {top:.3f} | {bottom:.3f} |")
    return "\n".join(lines)


def bench(row: Row, settings: Settings) -> tuple[list[str], list[Scene]]:
    """The captions of a row's prompts, and the scenes that they tell."""
    pairs = prompts(row.category, settings.prompts, settings.seed + 1, VOCABULARIES[settings.vocabulary], row.split)
    return [text for text, _ in pairs], [scene for _, scene in pairs]


def _correct(scored: dict) -> float:
    return float(np.float64(scored["correct"]))


def _cell(scored: dict) -> str:
    low, high = scored["interval"]
    return f"{scored['correct']:.3f} ({low:.2f}-{high:.2f})"
