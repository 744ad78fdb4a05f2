"""A base folder with the demo in it, a server and a page a host; one Chromium for all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lavi_bridge.tests.browser.chromium import NAMES, FrontEnd, browser, find, open_page
from lavi_bridge.tests.nodes.base_folder import STAND_INS
from lavi_bridge.tests.nodes.foreign_bridges import GOLDEN, GOLDEN_FILES, IN, LANGUAGE, SIZED
from lavi_bridge.tests.nodes.host import Place, Server, places
from lavi_bridge.tests.nodes.tiny import language_model
from lavi_bridge.training.demo.install import install

NO_BROWSER = f"NO CHROMIUM FOUND: tests/browser did not run; install one of {', '.join(NAMES)} or set CHROMIUM"
NO_HOST = "NO COMFYUI HOST FOUND: tests/browser did not run; set COMFYUI_PATH (and COMFYUI_PYTHON)"
HOSTS = places()
SETTINGS = {"Comfy.TutorialCompleted": True}  # else the templates open by themselves
ELLA = "ella/golden-ella.safetensors"
DEMO = {
    "LLM": "lavi_demo_language",
    "lavi_bridges": "lavi_demo_bridge.safetensors",
    "diffusers": "lavi_demo_vision",
    "vae": "lavi_demo_vae.safetensors",
}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Not for the session: Playwright's loop would be the running one in every test after these."""
    program = find()
    if program is None:
        pytest.skip(NO_BROWSER)
    with browser(program) as running:
        yield running


@pytest.fixture(scope="module")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models/ with the demo, a file under every other name that a workflow holds, a language model too many, and an
    adapter of ELLA's with its own."""
    folder = tmp_path_factory.mktemp("front_end")
    (folder / "models").mkdir()
    try:
        install(folder)
    except ValueError as error:
        pytest.skip(f"NO LANGUAGE MODEL FOR THE DEMO: {error}")
    for name in (*STAND_INS, *SIZED):
        kind = name.split("/")[0]
        target = folder / "models" / name
        target.parent.mkdir(exist_ok=True)
        if not target.exists():
            target.symlink_to(folder / "models" / (f"{kind}/{DEMO[kind]}" if kind in DEMO else f"vae/{DEMO['vae']}"))
    language_model(folder / "models" / "LLM" / "tiny-llama", "llama")
    language_model(folder / "models" / "LLM" / LANGUAGE["t5"], "t5", IN)
    (folder / "models" / ELLA).symlink_to(GOLDEN / GOLDEN_FILES[ELLA])
    return folder / "models"


@pytest.fixture(scope="module", params=HOSTS or [None], ids=str)
def server(
    request: pytest.FixtureRequest, chromium: Any, model_files: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    place: Place | None = request.param
    if place is None:
        pytest.skip(NO_HOST)
    base = tmp_path_factory.mktemp(str(place))
    (base / "models").symlink_to(model_files, target_is_directory=True)
    user = base / "user" / "default"
    user.mkdir(parents=True)
    (user / "comfy.settings.json").write_text(json.dumps(SETTINGS))
    running = Server(place, base)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def front_end(chromium: Any, server: Server) -> FrontEnd:
    return open_page(chromium, server)
