"""The disk space that a run will need, against what is free."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..models.pair import Pair
from ..recipe import Recipe
from . import memory_estimate
from .report import Report, in_bytes


def check(
    report: Report,
    recipe: Recipe,
    pair: Pair,
    latents: tuple[int, ...] | None,
    count: int | None,
    captions: int | None,
    tokens: int,
) -> None:
    """Add what the run writes to ``report``. Raises ValueError where a file system has less room.

    latents: [C h w] of one picture. count: of pictures; captions: different ones; of each None = not known, and left
    out. tokens: of the longest prompt.
    """
    output = Path(recipe.output)
    cache = Path(recipe.data.cache or output / "latents")
    values = sum(p.numel() for p in pair.trained().values())
    one = int(values * (4 + memory_estimate.MOMENTS.get(recipe.optimizer.kind, 8) + (4 if recipe.ema else 0)))
    kept = min(recipe.keep, -(-recipe.steps // recipe.save_every) + 1) + 1  # one while it is written
    if recipe.keep_every:
        kept += recipe.steps // recipe.keep_every
    wanted = [("states", output / "state", one * kept, f"{kept} of {in_bytes(one)}, one of them in writing")]
    bridge = 2 * sum(p.numel() for _, p in pair.group("adapter"))
    for name in ("language", "vision"):
        numbers = sum(p.numel() for _, p in pair.group(name))
        if getattr(recipe, name).train == "lora":
            bridge += 2 * numbers
        elif numbers:
            wanted.append((f"{name} model", output / "vision", 2 * 4 * numbers, "trained whole, one in writing"))
    wanted.append(("bridge", output / "bridge.safetensors", 2 * bridge, "half precision, one in writing"))
    if latents is not None and count is not None:
        each = 2 * latents[0] * latents[1] * latents[2] * (2 if recipe.data.flip else 1)
        wanted.append(("latents", cache, count * each, f"{count:,} of {in_bytes(each)}"))
    if recipe.language.train == "frozen" and recipe.language.states_gb and captions is not None:
        each = tokens * pair.adapter_config.state_width * next(pair.encoder.parameters()).dtype.itemsize
        most = int(min(captions * each, recipe.language.states_gb * 1e9))
        wanted.append(("hidden states", cache, most, f"at most, up to {in_bytes(each)} a caption"))
    if pair.ear is not None and captions is not None:
        each = pair.ear.prompt.max_length * pair.ear.width * (2 if recipe.precision == "bf16" else 4)
        most = int(min(captions * each, recipe.own_encoder.states_gb * 1e9))
        wanted.append(("own encoder", cache, most, f"at most, up to {in_bytes(each)} a caption"))
    _compare(report, wanted)


def _compare(report: Report, wanted: list[tuple[str, Path, int, str]]) -> None:
    needed: dict[int, int] = {}
    rooms: dict[int, tuple[Path, int]] = {}
    for name, path, total, how in wanted:
        report.add(f"disk for {name}", f"{in_bytes(total)}: {how}; in {path}")
        folder = existing(path)
        device = folder.stat().st_dev
        there = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else 0
        needed[device] = needed.get(device, 0) + max(0, total - there)
        rooms.setdefault(device, (folder, shutil.disk_usage(folder).free))
    for device, (folder, free) in rooms.items():
        if needed[device] > free:
            raise ValueError(
                f"the run writes {in_bytes(needed[device])} to the disk of {folder}, which has {in_bytes(free)} free"
            )


def existing(path: Path) -> Path:
    """``path`` or the nearest folder above it that is there."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())
