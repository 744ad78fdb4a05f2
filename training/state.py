"""The resumable state of a run: trained weights, optimiser and step, in folders that appear whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .files import read_safetensors, write_safetensors, write_text

PREFIX = "step-"


def save(
    folder: Path,
    step: int,
    trained: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    keep: int,
    identity: dict[str, Any],
) -> Path:
    """Write ``folder``/step-NNNNNNN and delete all but the newest ``keep``. An OSError leaves the older ones intact.

    identity: plain data that must be the same when the run is resumed, by dotted key.
    """
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
        if moments:  # none before the first step; safetensors cannot read back a file of nothing
            write_safetensors(part / "optimizer.safetensors", moments)
        write_text(part / "state.json", json.dumps({"step": step, "identity": identity}))
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


def load(
    path: Path, trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, identity: dict[str, Any]
) -> int:
    """Fill weights and optimiser from a state and return its step.

    Raises ValueError for a state of another ``identity``; keys that only one side knows, as other versions of this
    code have them, are passed over.
    """
    facts = json.loads((path / "state.json").read_text())
    for key, value in facts.get("identity", {}).items():
        if key in identity and identity[key] != value:
            raise ValueError(
                f"the state {path} does not fit this recipe: {key} is {value!r} there and {identity[key]!r} here; "
                "put it back, or train into another output"
            )
    weights = read_safetensors(path / "weights.safetensors")
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
    moments = read_safetensors(path / "optimizer.safetensors") if facts["step"] else {}
    for name_key, value in moments.items():
        name, _, key = name_key.partition(":")
        optimizer.state[trained[key]][name] = value if name == "step" else value.to(trained[key].device)
    return facts["step"]
