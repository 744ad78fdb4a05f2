"""A real ComfyUI as a subprocess: started once, spoken to over HTTP as a browser would."""

from __future__ import annotations

import importlib.metadata
import json
import os
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 180
RUN_SECONDS = 120
PACK = "ComfyUI-LaVi-Bridge"  # hyphens, as in a user's custom_nodes


@dataclass(frozen=True)
class Place:
    """Where a host lies, and the Python that runs it."""

    path: Path
    python: Path

    def __str__(self) -> str:
        return self.path.name


def places() -> list[Place]:
    """The hosts on this machine: COMFYUI_PATH (else ~/comfy/ComfyUI) and COMFYUI_PATH_OLD (else ComfyUI-0.3.64 beside
    it), and, where it is named, COMFYUI_PATH_MID: what holds on both ends has been seen to hold there."""
    found, homes = [], Path.home() / "comfy"
    for suffix, default in (("", homes / "ComfyUI"), ("_OLD", homes / "ComfyUI-0.3.64"), ("_MID", None)):
        told = os.environ.get(f"COMFYUI_PATH{suffix}")
        if told is None and default is None:
            continue
        path = Path(told or default or "")
        python = Path(os.environ.get(f"COMFYUI_PYTHON{suffix}") or path / ".venv" / "bin" / "python")
        if (path / "main.py").is_file() and python.exists():
            found.append(Place(path, python))
    return found


def environment() -> dict[str, str]:
    kept = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return {**kept, "PYTHONPATH": str(requirements())}


@cache
def requirements() -> Path:
    """A folder with what requirements.txt lists beyond a bare ComfyUI and is plain Python: links to the packages here,
    so that no host is changed."""
    folder = Path(tempfile.mkdtemp(prefix="requirements-"))
    for name in ("gguf",):
        distribution = importlib.metadata.distribution(name)
        parts = {str(file).split("/")[0] for file in distribution.files or () if not str(file).startswith("..")}
        for part in parts:
            (folder / part).symlink_to(str(distribution.locate_file(part)))
    return folder


@dataclass
class Outcome:
    """What one graph came to. error: what a person would read, "" = it ran."""

    error: str = ""
    images: list[Tensor] = field(default_factory=list)  # [H W 3] uint8
    latents: list[Tensor] = field(default_factory=list)  # [B C H W]
    texts: list[str] = field(default_factory=list)


class Server:
    """A host that serves ``base`` with this checkout as a custom node. flags: more of its command line."""

    def __init__(self, place: Place, base: Path, *flags: str):
        self.base = base
        self._written: dict[str, Any] = {}  # by what a node was asked for
        (base / "custom_nodes").mkdir(exist_ok=True)
        link = base / "custom_nodes" / PACK
        if not link.exists():
            link.symlink_to(ROOT, target_is_directory=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log_path = base / f"{place}.log"
        command = [str(place.python), "main.py", "--cpu", "--base-directory", str(base), "--port", str(self.port)]
        command += ["--disable-api-nodes", "--listen", "127.0.0.1", "--database-url", "sqlite:///:memory:", *flags]
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=place.path, env=environment(), stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.get("/system_stats")
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    raise AssertionError(f"{place} did not start:\n{self.log()[-4000:]}") from None
                time.sleep(0.2)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as reply:
            return json.load(reply)

    def run(self, graph: dict[str, Any], seconds: float = RUN_SECONDS) -> Outcome:
        """Queue a graph in API form and wait for it, ``seconds`` at most."""
        body = json.dumps({"prompt": graph}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/prompt", body)
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                queued = json.load(reply)["prompt_id"]
        except urllib.error.HTTPError as error:
            answer = json.load(error)
            errors = [e for node in answer.get("node_errors", {}).values() for e in node["errors"]]
            return Outcome(error="; ".join(e["details"] for e in errors) or str(answer["error"]))
        deadline = time.monotonic() + seconds
        while queued not in (history := self.get(f"/history/{queued}")):
            assert time.monotonic() < deadline and self.process.poll() is None, self.log()[-4000:]
            time.sleep(0.02)
        return self._outcome(history[queued], graph)

    def _outputs(self, entry: dict[str, Any], graph: dict[str, Any], cached: list[str]) -> list[dict[str, Any]]:
        """What each node wrote; host 0.8.0 leaves out what it wrote before and finds unchanged."""
        asked = {name: json.dumps(_asked(graph, name)) for name in graph}
        self._written |= {asked[name]: output for name, output in entry["outputs"].items()}
        return [
            self._written[asked[name]]
            for name in dict.fromkeys([*entry["outputs"], *cached])
            if asked[name] in self._written
        ]

    def _outcome(self, entry: dict[str, Any], graph: dict[str, Any]) -> Outcome:
        from PIL import Image

        outcome, cached = Outcome(), []
        for kind, message in entry["status"]["messages"]:
            if kind == "execution_error":
                outcome.error = message["exception_message"].strip()
            elif kind == "execution_cached":
                cached = message["nodes"]
        for output in self._outputs(entry, graph, cached):
            outcome.texts += [text for text in output.get("text", []) if isinstance(text, str)]
            for kind in ("images", "latents"):
                for file in output.get(kind, []):
                    data = (self.base / "output" / file["subfolder"] / file["filename"]).read_bytes()
                    if kind == "images":
                        with Image.open(BytesIO(data)) as picture:
                            pixels = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
                            outcome.images.append(pixels.reshape(picture.height, picture.width, 3))
                    else:
                        path = self.base / "output" / file["subfolder"] / file["filename"]
                        outcome.latents.append(load_file(path)["latent_tensor"])
        return outcome


def _asked(graph: dict[str, Any], name: str) -> Any:
    """A node with all that it depends on."""
    inputs = graph[name]["inputs"]
    linked = {key: [_asked(graph, value[0]), value[1]] for key, value in inputs.items() if isinstance(value, list)}
    return [graph[name]["class_type"], sorted((inputs | linked).items())]
