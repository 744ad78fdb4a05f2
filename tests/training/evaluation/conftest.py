"""A run folder with pictures, and the metrics' models in tiny."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lavi_bridge.lavi_core.files import write_bytes
from lavi_bridge.tests.training.evaluation.models import write_blip, write_clip, write_detr, write_owl
from lavi_bridge.tests.training.tiny import write_recipe
from lavi_bridge.training.evaluation.generate import Settings, begin, manifest_of, png
from lavi_bridge.training.evaluation.prompts import Prompt
from lavi_bridge.training.evaluation.run_folder import Run, file_of
from lavi_bridge.training.loop.trainer import Trainer
from lavi_bridge.training.recipe import read_recipe

PROMPTS = (
    Prompt("a red circle and a big blue square", "color"),
    Prompt("a cat on the left of a dog", "spatial"),
    Prompt("a wooden circle", "complex", {"complex": "spatial"}),
    Prompt("a big cat and a green square", "complex"),
)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders by kind."""
    folder = tmp_path_factory.mktemp("metrics")
    writers = {"clip": write_clip, "blip": write_blip, "detr": write_detr, "owl": write_owl}
    return {kind: write(folder / f"tiny-{kind}") for kind, write in writers.items()}


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two seeds of PROMPTS: noise of 64 pixels."""
    folder = tmp_path_factory.mktemp("run")
    return write_run(folder, list(PROMPTS))


@pytest.fixture(scope="session")
def bridge(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the tiny models, one step old."""
    folder = tmp_path_factory.mktemp("bridge")
    recipe = write_recipe(folder / "recipe.toml", tiny, folder / "run")
    return Trainer(read_recipe(recipe, ["steps=1"])).run()


def write_run(folder: Path, prompts: list[Prompt], seeds: tuple[int, ...] = (1, 2), size: int = 64) -> Run:
    rows = begin(folder, manifest_of(prompts, seeds, Settings(size=size), "0" * 64))
    rng = np.random.default_rng(0)
    for row in rows:
        write_bytes(file_of(folder, row["id"]), png(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)))
    return Run.open(folder)
