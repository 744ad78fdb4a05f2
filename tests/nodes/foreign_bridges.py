"""Adapters of other projects where their own node packs keep them; see ``check_foreign_bridges``."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lavi_bridge.lavi_core.adapters import build
from lavi_bridge.lavi_core.config import AdapterConfig
from lavi_bridge.lavi_core.exporters import write_gguf
from lavi_bridge.lavi_core.importers import FOREIGN
from lavi_bridge.lavi_core.importers.key_map import parted, theirs_of
from lavi_bridge.tests.lavi_core.importers.t5free import write_conditioner
from lavi_bridge.tests.lavi_core.language.gguf_files import write_own_names
from lavi_bridge.tests.lavi_core.language.qwen3 import write_qwen3
from lavi_bridge.tests.lavi_core.language.qwen35 import write_qwen35
from lavi_bridge.tests.nodes import vision_models as vm
from lavi_bridge.tests.nodes.host import ROOT
from lavi_bridge.tests.nodes.tiny import WIDTH, language_model
from lavi_bridge.tests.training import dits
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
    "llm_adapters/golden-qwen-sdxl.safetensors": "qwen_sdxl/adapter.safetensors",
    "llm_adapters/golden-anima-t5free.safetensors": "anima_t5free/adapter.safetensors",
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
    "llm_adapters/tiny-anima.safetensors": (
        "anima",
        AdapterConfig(
            kind="token_queries",
            in_width=24,
            inner_width=32,
            out_width=dits.TEXT,
            vocabulary=32128,
            depth=1,
            heads=4,
        ),
    ),
    "llm_adapters/tiny-pig.gguf": (
        "gguf_trainer",
        AdapterConfig(
            kind="seeded_resampler",
            in_width=24,
            inner_width=64,
            out_width=4096,
            tokens=120,
            vocabulary=32128,
            depth=1,
            heads=1,
        ),
    ),
}


DISTILLED, HEARD = 16, 36  # widths of the tiny DistillT5


def distill_t5(path: Path) -> None:
    """A T5 with T5's own vocabulary and the projection behind it, in one file, as DistillT5 is published."""
    import transformers as hf

    sizes: dict[str, Any] = {"d_model": DISTILLED, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4}
    torch.manual_seed(9)
    encoder = hf.T5EncoderModel(hf.T5Config(**sizes, vocab_size=32128, feed_forward_proj="gated-gelu"))
    tensors = {f"encoder.{name}": weight for name, weight in encoder.state_dict().items() if "embed_tokens" not in name}
    tensors["final_projection.0.weight"] = torch.randn(HEARD, DISTILLED) / DISTILLED**0.5
    tensors["final_projection.3.weight"] = torch.randn(HEARD, HEARD) / HEARD**0.5
    save_file({name: tensor.half().contiguous() for name, tensor in tensors.items()}, path)


def foreign_bridges(models: Path) -> None:
    write_qwen35(models / "LLM" / "tiny-qwen35", 64)
    write_qwen3(models / "LLM" / "tiny-qwen3")
    pig_clip = write_qwen3(models / "LLM" / "tiny-pig-clip")
    write_own_names(pig_clip.with_suffix(".gguf"), pig_clip)
    (pig_clip / "model.safetensors").unlink()
    (models / "text_encoders").mkdir(exist_ok=True)
    distill_t5(models / "text_encoders" / "tiny-distill-t5.safetensors")
    with TemporaryDirectory() as narrow:
        language = write_qwen35(Path(narrow), 24)
        write_conditioner(models / "text_encoders" / "tiny-anima-t5free.safetensors", dits.TEXT, language)
    save_file(vm.clip_l(), models / "text_encoders" / "tiny-clip-l.safetensors")
    for kind, name in LANGUAGE.items():
        language_model(models / "LLM" / name, kind, IN, positions=512)
    for name, file in GOLDEN_FILES.items():
        (models / name).parent.mkdir(exist_ok=True)
        shutil.copy(GOLDEN / file, models / name)
    torch.manual_seed(8)
    for name, (dialect, config) in SIZED.items():
        weights = {key: tensor + 0.02 * torch.randn_like(tensor) for key, tensor in build(config).state_dict().items()}
        row = FOREIGN[dialect]
        tensors = parted(weights, theirs_of(weights, row.keys))
        if row.gguf is None:
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, models / name)
        else:
            write_gguf(models / name, {f"{row.prefixes[0]}{key}": t for key, t in tensors.items()}, row.gguf(config))
    heard = vm.TINY | {"cross_attention_dim": OUT}
    vm.unet(models / "diffusers" / "tiny-ella", vm.EPSILON, heard, 0.18215)
    pooled = vm.SIZED_SHAPE | {"cross_attention_dim": OUT, "projection_class_embeddings_input_dim": 6 * 8 + POOLED}
    vm.unet(models / "diffusers" / "tiny-rouwei", vm.EPSILON, pooled, 0.13025)
    told = vm.SIZED_SHAPE | {"projection_class_embeddings_input_dim": 6 * 8 + 20}
    vm.unet(models / "diffusers" / "tiny-qwen-sdxl", vm.EPSILON, told, 0.13025)
    wide = {"joint_attention_dim": HEARD, "pooled_projection_dim": 768}
    dits.write("flux", models / "diffusers" / "tiny-flux-clip", changes=wide, own_latents=False)
