"""Checkpoints to resume from: trained weights, optimizer state and step, in folders that appear whole or not at all.

Tensors are whole, whatever the number of processes: a state goes on with any other number of them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...lavi_core.files import read_safetensors, write_safetensors, write_text
from ..recipe import Recipe
from . import optimizers

PREFIX = "step-"
# What may change when a run goes on: what it writes, how long it runs, and what leaves its numbers alone.
FREE = (
    *("name", "output", "steps", "save_every", "keep", "keep_every", "sample", "validation", "trackers"),
    *("gradient_checkpointing", "compile", "data.cache", "adapter.from_", "adapter.preset"),
)
# Paths that may change as long as what lies there has not, by the key that tells. A print is compared for that alone.
MOVABLE = {
    "language.model": "language.fingerprint",  # and its facts, which are compared in any case
    "vision.model": "vision.print",
    "vision.vae": "vae.print",
    "own_encoder.model": "own_encoder.print",
    "data.path": "data.print",
    "adapter.query_tokenizer": "query_tokenizer.fingerprint",
}
PRINT = ".print"


def identity_of(
    recipe: Recipe, fingerprints: Mapping[str, str | None], prints: Mapping[str, str | None]
) -> dict[str, Any]:
    """What must be the same when a run is resumed, see ``load``: its recipe, but for ``FREE``, and the fingerprints of
    its models; with what tells whether models and data were moved as they are; by dotted key."""
    facts = {}
    for key, value in recipe.plain().items():
        facts |= {f"{key}.{sub}": v for sub, v in value.items()} if isinstance(value, dict) else {key: value}
    kept = {key: v for key, v in facts.items() if key not in FREE and key.split(".")[0] not in FREE}
    kept |= {f"{name}.fingerprint": value for name, value in fingerprints.items()}
    return kept | {f"{name}{PRINT}": value for name, value in prints.items()}


def save(
    folder: Path,
    step: int,
    trained: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    keep: int,
    facts: Mapping[str, Any],
    keep_every: int = 0,
    extra: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write ``folder``/step-NNNNNNN, then delete all but the newest ``keep`` and, of the older ones, every
    ``keep_every``-th step (0 = none). A state of this step that is there already is left as it is. An OSError leaves
    the older ones intact.

    facts: plain data; of it, "identity" must be the same when the run is resumed (see ``load``). extra: further tensors
    that the run goes on from, such as averaged weights.
    """
    target = folder / f"{PREFIX}{step:07d}"
    if not _whole(target):
        part = folder / f".{target.name}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            moments, plain = optimizers.dump(optimizer, trained)
            write_safetensors(part / "weights.safetensors", {key: p.detach() for key, p in trained.items()})
            if moments:  # none before the first step; safetensors cannot read back a file of nothing
                write_safetensors(part / "optimizer.safetensors", _apart(moments))
            if extra:
                write_safetensors(part / "extra.safetensors", extra)
            write_text(part / "state.json", json.dumps({"step": step, **facts, "optimizer": plain}))
            _flush_folder(part)
            shutil.rmtree(target, ignore_errors=True)
            part.replace(target)
            _flush_folder(folder)
        except OSError:
            shutil.rmtree(part, ignore_errors=True)
            raise
    for old in states(folder)[:-keep]:
        kept = int(old.name.removeprefix(PREFIX))
        if not (keep_every and kept and kept % keep_every == 0):
            gone = old.replace(folder / f".{old.name}.gone")  # what is half deleted must not look whole
            shutil.rmtree(gone)
    return target


def states(folder: Path) -> list[Path]:
    """Whole states, oldest first."""
    return sorted(filter(_whole, folder.glob(f"{PREFIX}*")))


def sweep(output: Path) -> None:
    """Delete what a killed run has left half written or half deleted in its output folder."""
    for folder in (output, output / "state", output / "latents"):
        for path in (*folder.glob(".*.part"), *folder.glob(".*.gone")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def load(
    path: Path, trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, identity: dict[str, Any]
) -> tuple[int, dict[str, Tensor]]:
    """Fill weights and optimiser from a state and return its step and its ``extra``.

    Raises ValueError for a state of another ``identity``; keys that only one side knows, as other versions of this
    code have them, are passed over, and so are the paths of ``MOVABLE`` and the teacher's once it was heard. Data that
    was edited where it lies is the caller's to tell of.
    """
    facts = json.loads((path / "state.json").read_text())
    before = facts.get("identity", {})
    for key, value in before.items():
        if key not in identity or key.endswith(PRINT):
            continue
        if identity[key] != value and not _moved(key, facts, identity):
            here = f"{identity[key]!r} here"
            here += ", where something else lies" if before.get(MOVABLE.get(key)) is not None else ""
            raise ValueError(
                f"the state {path} does not fit this recipe: {key} is {value!r} there and {here}; "
                "put it back, or train into another output, from this run's bridge if you like (adapter.from)"
            )
    weights = _read(path, "weights")
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
    moments = _read(path, "optimizer") if facts["step"] else {}
    optimizers.restore(optimizer, trained, moments, facts.get("optimizer", {}))
    return facts["step"], _read(path, "extra") if (path / "extra.safetensors").is_file() else {}


def _moved(key: str, facts: Mapping[str, Any], identity: Mapping[str, Any]) -> bool:
    if key == "align.teacher":
        return facts["step"] >= identity["align.prediction_steps"]
    there = facts["identity"].get(MOVABLE.get(key))
    return there is not None and there == identity.get(MOVABLE[key])


def _read(path: Path, part: str) -> dict[str, Tensor]:
    try:
        return read_safetensors(path / f"{part}.safetensors")
    except ValueError as error:
        before = [other.name for other in states(path.parent) if other.name < path.name]
        way = f"{before[-1]}, the one before it" if before else "the beginning"
        raise ValueError(
            f"the state {path} is damaged ({error.__cause__ or error}); delete that folder and go on from {way}"
        ) from error


def _whole(path: Path) -> bool:
    return (path / "state.json").is_file()


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those that share memory, as 8-bit optimizers share their map, get their own: safetensors refuses them."""
    seen: set[int] = set()
    apart = {}
    for key, tensor in tensors.items():
        apart[key] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return apart


def _flush_folder(folder: Path) -> None:
    """Names are on the disk only when their folder is. Windows cannot open one, and orders them by itself."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
