"""A probe of some language models, one after the other, and what is written of it."""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from ...lavi_core.files import write_bytes, write_text
from ...lavi_core.language import TextEncoder
from ..models import named
from ..models.progress import told
from .captions import Split
from .measure import Probed, measure
from .plot import draw
from .report import KINDS, columns, facts, page
from .targets import Targets, teacher_states


def targets_of(split: Split, teacher: str, max_length: int, device: torch.device) -> Targets:
    """teacher: the vision model's own encoder, or its pipeline's folder; "" = there is none."""
    states = teacher_states(named.teacher(teacher), split.all, max_length, device) if teacher else None
    return Targets(split, states)


def probe(
    model: str,
    split: Split,
    targets: Targets,
    device: torch.device,
    layers: str = "all",
    max_length: int = 77,
    batch: int = 32,
    dtype: torch.dtype = torch.float32,
    name: str = "",
) -> Probed:
    """Of one language model, a folder, a .gguf file or a name of ``named.language``; freed again at the end."""
    path = named.language(model)
    with told(f"loading {model}"):
        encoder = TextEncoder.load(path, dtype=dtype, device=device, weights="dense")
    found = measure(name or model, encoder, split, targets, layers, max_length, batch)
    del encoder
    gc.collect()  # modules refer to each other in circles
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return found


def write(probed: Sequence[Probed], split: Split, targets: Targets, folder: Path, command: str) -> str:
    """table.md, probe.json and probe.png in ``folder``; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    text, shown = page(probed, split, targets, command), columns(split, targets)
    write_text(folder / "probe.json", json.dumps(facts(probed, split), indent=1))
    write_bytes(folder / "probe.png", draw(probed, shown, f"share of {KINDS[shown[0].keys[0][1]]}"))
    write_text(folder / "table.md", text)
    return text
