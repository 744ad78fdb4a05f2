"""Library versions and the device that a run was made with, for its folder and its bridge file."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ...lavi_core.files import write_text

PACKAGES = ("torch", "transformers", "diffusers", "peft", "accelerate", "safetensors", "numpy")


def environment() -> dict:
    """Versions and machine, as recorded in the run folder and in the bridge file."""
    import torch

    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    processor = f"CPU with {torch.backends.cpu.get_cpu_capability()}, threads: {torch.get_num_threads()}"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor
    return {"versions": versions, "device": device}


def record_environment(path: Path, resumed: bool) -> None:
    """One entry for each time that the run was started, oldest first."""
    found = json.loads(path.read_text()) if resumed and path.is_file() else []
    before = found if isinstance(found, list) else [found]  # one bare entry, in runs of before
    write_text(path, json.dumps([*before, environment()], indent=1))
