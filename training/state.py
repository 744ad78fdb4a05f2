"""The resumable state of a run: trained weights, optimiser and step, in folders that appear whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .files import write_safetensors, write_text

PREFIX = "step-"


def save(
    folder: Path, step: int, trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, keep: int
) -> Path:
    """Write ``folder``/step-NNNNNNN and delete all but the newest ``keep``. An OSError leaves the older ones intact."""
    target = folder / f"{PREFIX}{step:07d}"
    part = folder / f".{target.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        write_safetensors(part / "weights.safetensors", {key: p.detach() for key, p in trained.items()})
        moments = {}
        for key, p in trained.items():
            for name, value in optimizer.state.get(p, {}).items():
                moments[f"{name}:{key}"] = value if isinstance(value, Tensor) else torch.tensor(value)
        write_safetensors(part / "optimizer.safetensors", moments)
        write_text(part / "state.json", json.dumps({"step": step}))
        shutil.rmtree(target, ignore_errors=True)
        part.replace(target)
    except OSError:
        shutil.rmtree(part, ignore_errors=True)
        raise
    for old in states(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def states(folder: Path) -> list[Path]:
    """Whole states, oldest first."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if (path / "state.json").is_file())


def load(path: Path, trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Fill weights and optimiser from a state and return its facts, ``step`` among them."""
    from safetensors.torch import load_file

    weights = load_file(path / "weights.safetensors")
    if weights.keys() != trained.keys():
        odd = sorted(weights.keys() ^ trained.keys())
        raise ValueError(f"the state {path} does not fit this recipe: {len(odd)} weights differ, the first is {odd[0]}")
    with torch.no_grad():
        for key, parameter in trained.items():
            if parameter.shape != weights[key].shape:
                raise ValueError(
                    f"the state {path} does not fit this recipe: {key} is {tuple(weights[key].shape)} there and "
                    f"{tuple(parameter.shape)} here"
                )
            parameter.copy_(weights[key])
    for name_key, value in load_file(path / "optimizer.safetensors").items():
        name, _, key = name_key.partition(":")
        optimizer.state[trained[key]][name] = value if name == "step" else value.to(trained[key].device)
    return json.loads((path / "state.json").read_text())
