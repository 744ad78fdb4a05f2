"""Tiny models and a recipe for them, written to folders."""

from __future__ import annotations

from pathlib import Path

import pytest
from lavi_bridge.tests.training.paper import write_models
from lavi_bridge.tests.training.tiny import write_recipe, write_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with vision/{unet,scheduler}, text_encoder/ and vae.safetensors."""
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the paper's models, tiny, and a few captioned pictures, where its recipes look for them."""
    folder = tmp_path_factory.mktemp("paper")
    write_models(folder)
    return folder


@pytest.fixture
def recipe(tiny: Path, tmp_path: Path) -> Path:
    """A recipe of 6 steps on 16 ShapeBench pictures of 32 pixels; its output lies beside it."""
    return write_recipe(tmp_path / "recipe.toml", tiny, tmp_path / "run")
