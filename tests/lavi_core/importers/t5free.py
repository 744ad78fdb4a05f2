"""A conditioner of the golden one's config and lexicon, for a vision model of another width."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lavi_bridge.lavi_core.adapters import build
from lavi_bridge.lavi_core.config import AdapterConfig
from lavi_bridge.lavi_core.importers import FOREIGN
from lavi_bridge.lavi_core.importers.key_map import parted, theirs_of
from lavi_bridge.lavi_core.language.single_file import BUNDLED
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).parents[2] / "golden" / "connectors" / "anima_t5free" / "adapter.safetensors"


def write_conditioner(path: Path, out_width: int, folder: Path | None = None) -> Path:
    """folder: of a language model, which lies in the same file then, as AnimaT5Free's text encoder is published."""
    row = FOREIGN["anima_t5free"]
    sizes: dict[str, Any] = {"in_width": 48, "inner_width": 16, "vocabulary": 6, "depth": 2, "heads": 4}
    weights = build(AdapterConfig(kind="row_refiner", out_width=out_width, **sizes)).state_dict()
    torch.manual_seed(10)
    for name, tensor in weights.items():
        if tensor.is_floating_point() and name != "spread":
            tensor += 0.2 * torch.randn_like(tensor)
    tensors, golden = parted(weights, theirs_of(weights, row.keys)), load_file(GOLDEN)
    state = {f"{row.prefixes[0]}{name}": tensor.contiguous() for name, tensor in tensors.items()}
    state |= {key: golden[key] for key in row.texts.values()}
    if folder is not None:
        state |= load_file(folder / "model.safetensors")
        files = {key: (folder / name).read_bytes() for name, key in BUNDLED.items()}
        state |= {key: torch.frombuffer(bytearray(text), dtype=torch.uint8) for key, text in files.items()}
    save_file(state, path)
    return path
