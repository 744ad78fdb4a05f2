"""The demo in ComfyUI with its real weights: pictures as the prompts say, the same as the standalone sampler's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lavi_bridge.tests.nodes.host import ROOT, Place, Server
from lavi_bridge.training.demo.install import install
from lavi_bridge.training.demo.show import load
from lavi_bridge.training.models import named
from lavi_bridge.training.models.sampling import noise_for, sample
from lavi_bridge.training.shapebench import PromptSpec, judge

PROMPTS = {
    "a red circle": PromptSpec((("red", "circle", None),)),
    "a green square": PromptSpec((("green", "square", None),)),
    "a blue cross": PromptSpec((("blue", "cross", None),)),
    "a yellow triangle": PromptSpec((("yellow", "triangle", None),)),
}


@pytest.fixture(scope="module")
def language() -> Path:
    try:
        return named.language("demo:minilm")
    except ValueError as error:
        pytest.skip(f"NO LANGUAGE MODEL FOR THE DEMO: {error}")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, language: Path) -> Path:
    """A base folder of its own: the other tests' has tiny models under the demo's names."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "models").mkdir()
    install(folder)
    return folder


@pytest.fixture(scope="module")
def server(place: Place, base: Path) -> Iterator[Server]:
    running = Server(place, base)
    yield running
    running.stop()


@pytest.fixture
def workflow() -> dict:
    return json.loads((ROOT / "workflows" / "api" / "demo.json").read_text())


def test_the_demo_draws_what_the_prompts_name(server, workflow):
    right = 0
    for prompt, spec in PROMPTS.items():
        workflow["3"]["inputs"]["text"] = prompt
        outcome = server.run(workflow)
        assert not outcome.error, outcome.error
        right += judge(outcome.images[0].numpy(), spec).correct
    assert right >= 3, f"{right} of {len(PROMPTS)} pictures show what their prompt names"


def test_the_host_and_the_standalone_sampler_draw_the_same(server, workflow, language):
    prompt, settings = "a red circle left of a blue square", workflow["8"]["inputs"]
    workflow["3"]["inputs"]["text"] = prompt
    workflow["13"] = {"class_type": "SaveLatent", "inputs": {"samples": ["8", 0], "filename_prefix": "demo"}}
    outcome = server.run(workflow)
    assert not outcome.error, outcome.error
    pipeline = load("minilm", language)
    noise = noise_for(settings["seed"], (1, 4, 16, 16))
    heard, unheard = pipeline.condition([prompt]), pipeline.condition([""])
    latents = sample(pipeline.vision, heard, unheard, noise, settings["steps"], settings["cfg"])
    assert float((outcome.latents[0] - latents).abs().max()) < 1e-3
    assert float(latents.std()) > 0.1


def test_install_demo_refuses_what_is_no_comfyui(tmp_path):
    command = [sys.executable, "-m", "lavi_bridge.training.commands", "install-demo", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and "is no folder of ComfyUI" in result.stderr
    assert not list(tmp_path.iterdir())
