"""Adapters of other projects where their own node packs keep them; see ``check_foreign_bridges``."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from lavi_bridge.lavi_core.adapters import build
from lavi_bridge.lavi_core.config import AdapterConfig
from lavi_bridge.lavi_core.importers import FOREIGN
from lavi_bridge.lavi_core.importers.key_map import parted, theirs_of
from lavi_bridge.tests.nodes import vision_models as vm
from lavi_bridge.tests.nodes.host import ROOT
from lavi_bridge.tests.nodes.tiny import WIDTH, language_model
from safetensors.torch import save_file

GOLDEN = ROOT / "tests" / "golden" / "connectors"
IN, OUT, POOLED = 48, 64, 40  # widths of the golden adapters
LANGUAGE = {"t5": "states-t5", "gemma": "states-gemma"}  # kind -> its folder in models/LLM, of width IN
# Files of models/, of golden adapters
GOLDEN_FILES = {
    "ella/golden-ella.safetensors": "ella/adapter.safetensors",
    "llm_adapters/golden-rouwei.safetensors": "rouwei/adapter.safetensors",
    "llm_adapters/golden-rouwei-unfused.safetensors": "rouwei/adapter_unfused.safetensors",
    "llm_adapters/golden-rouwei-turbo.safetensors": "rouwei/adapter_turbo.safetensors",
}
# The adapters of the workflows, that speak from tiny models to those of true context width: file -> dialect, config
SIZED = {
    "ella/ella-sd1.5-tsc-t5xl.safetensors": (
        "ella",
        AdapterConfig(
            kind="timestep_resampler",
            in_width=WIDTH,
            inner_width=768,
            out_width=768,
            tokens=5,
            depth=1,
            heads=8,
            outer_norms=False,
            timestep_channels=32,
        ),
    ),
}


def foreign_bridges(models: Path) -> None:
    for kind, name in LANGUAGE.items():
        language_model(models / "LLM" / name, kind, IN, positions=512)
    for name, file in GOLDEN_FILES.items():
        (models / name).parent.mkdir(exist_ok=True)
        shutil.copy(GOLDEN / file, models / name)
    torch.manual_seed(8)
    for name, (dialect, config) in SIZED.items():
        weights = {key: tensor + 0.02 * torch.randn_like(tensor) for key, tensor in build(config).state_dict().items()}
        tensors = parted(weights, theirs_of(weights, FOREIGN[dialect].keys))
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, models / name)
    heard = vm.TINY | {"cross_attention_dim": OUT}
    vm.unet(models / "diffusers" / "tiny-ella", vm.EPSILON, heard, 0.18215)
    pooled = vm.SIZED_SHAPE | {"cross_attention_dim": OUT, "projection_class_embeddings_input_dim": 6 * 8 + POOLED}
    vm.unet(models / "diffusers" / "tiny-rouwei", vm.EPSILON, pooled, 0.13025)
