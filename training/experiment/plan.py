"""A plan: which bridges are trained, how they are judged, and what of the paper they are to show. One TOML file."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...lavi_core.config import from_dict
from ..evaluation.shapebench import GROUPS, ROWS, Settings
from ..recipe import Recipe, read_recipe

WORK = "{work}"  # in a plan's values: the folder that everything is written to
SEED = "{seed}"  # in a row's values: the seed of the run
DISTANCE = "distance"  # what a claim may be on besides prompts, see ``reference.py``

# What each bridge draws for the page.
PROMPTS = (
    "a red circle",
    "a striped blue square",
    "a yellow cross",
    "a red circle and a blue square",
    "a green cross above a red triangle",
    "three blue squares",
    "a crimson disc",
    "an emerald box",
)


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One question, one table of the page."""

    name: str
    title: str
    text: str


@dataclass(frozen=True, kw_only=True)
class VisionStage:
    """A vision model that the plan trains first. start: recipe of its random network (``demo/start.py``); recipe: that
    of its training. Both lie beside the plan."""

    name: str
    start: str
    recipe: str


@dataclass(frozen=True, kw_only=True)
class Control:
    """A language model with the sizes and the tokenizer of ``like`` and random weights, drawn anew for each seed: rows
    name it ``{work}/NAME-{seed}``."""

    name: str
    like: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One kind of bridge. set: changes of the plan's recipe, ``key.sub=value``. bridge: a file that is judged as it is,
    once, instead of one trained for each seed; the models are the recipe's all the same."""

    name: str
    label: str
    axes: tuple[str, ...]
    set: tuple[str, ...] = ()
    bridge: str = ""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """``better`` - ``worse``, two rows, on prompts of these ``ROWS`` or ``GROUPS`` of ``evaluation.shapes``; or, on
    DISTANCE alone, how much nearer ``better`` is to true pictures. whose: the paper's claim, or one of this plan's."""

    text: str
    whose: Literal["paper", "ours"] = "ours"
    better: str
    worse: str
    on: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """text: what the page begins with. set: changes of the recipe for all rows. prompts: judged, of each category and
    seed. steps, guidance: of sampling. note: what the page says besides of how it was made."""

    title: str
    text: str
    recipe: str
    seeds: tuple[int, ...]
    prompts: int
    steps: int
    guidance: float
    axis: tuple[Axis, ...]
    row: tuple[Row, ...]
    claim: tuple[Claim, ...] = ()
    set: tuple[str, ...] = ()
    vision: tuple[VisionStage, ...] = ()
    control: tuple[Control, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        rows, axes = [row.name for row in self.row], {axis.name for axis in self.axis}
        names = [part.name for part in (*self.row, *self.vision, *self.control)]  # of folders in WORK
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"a plan's rows, vision models and controls have names of their own, these have not: {', '.join(twice)}"
            )
        if unknown := {axis for row in self.row for axis in row.axes} - axes:
            raise ValueError(f"rows name the axes {', '.join(sorted(unknown))}; the plan has {', '.join(sorted(axes))}")
        if unknown := {name for claim in self.claim for name in (claim.better, claim.worse)} - set(rows):
            raise ValueError(f"claims name the rows {', '.join(sorted(unknown))}; the plan has {', '.join(rows)}")
        categories = [DISTANCE, *(name for name, _ in GROUPS), *(row.name for row in ROWS)]
        if unknown := {name for claim in self.claim for name in claim.on} - set(categories):
            raise ValueError(f"claims are on {', '.join(sorted(unknown))}; known: {', '.join(categories)}")
        if any(DISTANCE in claim.on and len(claim.on) > 1 for claim in self.claim):
            raise ValueError(f"a claim on {DISTANCE} is on nothing else: it is no share of pictures")

    def settings(self) -> Settings:
        """How its bridges are judged."""
        return Settings(prompts=self.prompts, steps=self.steps, guidance=self.guidance)

    def seeds_of(self, row: Row) -> tuple[int, ...]:
        return self.seeds[:1] if row.bridge else self.seeds

    def recipe_of(self, row: Row, seed: int, folder: Path, work: Path) -> Recipe:
        """The row's recipe, whose run is in ``work``/ROW-SEED. Raises ValueError naming the key that does not fit."""
        own = (f'output="{run_folder(work, row, seed)}"', f'data.cache="{work / "latents"}"', f"seed={seed}")
        changes = [value.replace(WORK, str(work)).replace(SEED, str(seed)) for value in (*self.set, *row.set)]
        return read_recipe(folder / self.recipe, [*changes, *own])


def run_folder(work: Path, row: Row, seed: int) -> Path:
    return work / f"{row.name}-{seed}"


def read_plan(path: str | Path) -> Plan:
    """Raises ValueError naming the file and the key for anything that does not fit."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no plan at {path}")
    try:
        return from_dict(Plan, tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
