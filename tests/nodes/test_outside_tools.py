"""What tools of others, which boards of compatibility run, say of the pack and of its workflows.

pip install comfy-import-guard==1.3.0 comfy-lint==0.1.0
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from lavi_bridge.tests.nodes.host import ROOT, Place, Server


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"NO {name} HERE: pip install {name}")
    return path


def test_no_import_will_break(place: Place, tmp_path: Path):
    guard, host = tool("comfy-import-guard"), place.path
    clone, pack = tmp_path / "cache" / "ComfyUI", tmp_path / "install" / "custom_nodes" / "lavi-bridge"
    subprocess.run(["git", "clone", "-q", "--shared", str(host), str(clone)], check=False)
    if not (clone / "comfy" / "model_management.py").is_file():  # a mirror may lack some large files
        pytest.skip(f"NO GIT CLONE: {host} is no repository, in which comfy-import-guard looks names up")
    pack.mkdir(parents=True)
    shutil.copy(ROOT / "__init__.py", pack)  # it follows no links
    for layer in ("nodes", "lavi_core"):
        shutil.copytree(ROOT / layer, pack / layer)
    where = ["--cache-dir", str(clone.parent), "--comfy-dir", str(pack.parents[1]), "--target", "HEAD"]
    run = subprocess.run(
        [guard, "check", "--offline", "--json", "--no-update", *where], capture_output=True, text=True, check=False
    )
    (found,) = json.loads(run.stdout)["packs"]
    assert found["references"] > 100 and not found["unparseable"], run.stdout + run.stderr
    # a name that getattr asks for with another value beside it is of newer hosts
    missing = [f"{one['dotted']} in {one['file']}" for one in found["breaking"] if one["kind"] != "getattr"]
    assert not missing
    assert run.returncode == 0 or found["breaking"]


def test_workflows_are_clean(server: Server):
    lint = tool("comfy-lint")
    files = sorted(str(path) for path in (ROOT / "workflows" / "api").glob("*.json"))
    url = f"http://127.0.0.1:{server.port}"
    run = subprocess.run([lint, "--server", url, "--strict", *files], capture_output=True, text=True, check=False)
    assert files and run.returncode == 0, run.stdout + run.stderr
