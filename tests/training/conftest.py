"""Tiny models and a recipe for them, written to folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lavi_bridge.tests.training.forks import Server
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


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Starts trainers as processes of their own, without their seconds of imports."""
    if not hasattr(os, "fork"):
        pytest.skip("the trainers are forked")
    with Server(tmp_path_factory.mktemp("server") / "log.txt") as server:
        yield server


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU is here: for what claims bits, or computes on tensors of its own beside a trainer's."""
    from accelerate.state import AcceleratorState

    if torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # of the processes that are started
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def recipe(tiny: Path, tmp_path: Path) -> Path:
    """A recipe of 6 steps on 16 ShapeBench pictures of 32 pixels; its output lies beside it."""
    return write_recipe(tmp_path / "recipe.toml", tiny, tmp_path / "run")
