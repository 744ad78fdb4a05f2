"""One base folder of tiny models and one server a session and host; see ``host.py`` and ``tiny.py``."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from lavi_bridge.tests.nodes.base_folder import write_base
from lavi_bridge.tests.nodes.host import ROOT, Place, Server, environment, places
from lavi_bridge.tests.nodes.tiny import PROMPTS
from safetensors.torch import load_file, save_file
from torch import Tensor

HOSTS = places()
NO_HOST = "NO COMFYUI HOST FOUND: tests/nodes did not run; set COMFYUI_PATH (and COMFYUI_PYTHON)"


@pytest.fixture(scope="session", params=HOSTS or [None], ids=str)
def place(request: pytest.FixtureRequest) -> Place:
    if request.param is None:
        pytest.skip(NO_HOST)
    return request.param


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    base = tmp_path_factory.mktemp("comfy")
    expected = {name: tensor.contiguous() for name, tensor in write_base(base).items()}
    save_file(expected, base / "expected.safetensors")
    (base / "prompts.json").write_text(json.dumps(PROMPTS))
    return base, expected


@pytest.fixture(scope="session")
def base(made: tuple[Path, dict[str, Tensor]]) -> Path:
    """A ComfyUI base folder with every model file that the tests name."""
    return made[0]


@pytest.fixture(scope="session")
def expected(made: tuple[Path, dict[str, Tensor]]) -> dict[str, Tensor]:
    """What transformers and diffusers compute with the same weights."""
    return made[1]


@pytest.fixture(scope="session")
def calls(place: Place, base: Path, inside: dict[str, str]) -> dict[str, Tensor]:
    """NAME.SAMPLER.CALL.PART: what networks were given and said in the checks, see ``check_connectors``."""
    return load_file(base / f"inside-{place}.json.calls")


@pytest.fixture(scope="session")
def drawn(place: Place, base: Path, calls: dict[str, Tensor]) -> dict[str, Tensor]:
    """NAME.SAMPLER: latents of this host's samplers around the standalone network, see ``standalone_samplers``."""
    script, out = Path(__file__).parent / "inside" / "standalone_samplers.py", base / f"inside-{place}.json.calls"
    command = [str(part) for part in (place.python, script, place.path, base, ROOT, out)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return load_file(f"{out}.drawn")


@pytest.fixture(scope="session")
def server(place: Place, base: Path) -> Iterator[Server]:
    running = Server(place, base)
    yield running
    running.stop()


@pytest.fixture(scope="session")
def inside(place: Place, base: Path) -> dict[str, str]:
    """The checks of ``inside/``, by name: "" or the traceback."""
    out = base / f"inside-{place}.json"
    command = [place.python, Path(__file__).parent / "inside" / "run.py", place.path, base, ROOT, out]
    done = subprocess.run(
        [str(part) for part in command], env=environment(), capture_output=True, text=True, timeout=900, check=False
    )
    assert out.is_file(), done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(out.read_text())
