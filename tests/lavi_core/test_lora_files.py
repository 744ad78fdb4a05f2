"""A LoRA file without a folder: kohya's names are matched to sites, PEFT's are kept, other kinds are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lavi_bridge.lavi_core import lora
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.lavi_core.lora_files import read_lora_file
from safetensors.torch import save_file


def pair(alpha: float | None = None, rank: int = 2, width: int = 32, out: int = 32) -> dict[str, torch.Tensor]:
    torch.manual_seed(rank)
    halves = {"lora_down.weight": torch.randn(rank, width), "lora_up.weight": torch.randn(out, rank)}
    return halves if alpha is None else {**halves, "alpha": torch.tensor(alpha)}


def named(stem: str, parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{stem}.{end}": tensor for end, tensor in parts.items()}


@pytest.mark.parametrize(
    ("kind", "stem", "site"),
    [
        ("clip", "lora_te_text_model_encoder_layers_1_self_attn_q_proj", "encoder.layers.1.self_attn.q_proj"),
        ("clip", "lora_te2_text_model_encoder_layers_0_self_attn_out_proj", "encoder.layers.0.self_attn.out_proj"),
        ("clip", "lora_te1_encoder_layers_0_self_attn_q_proj", "encoder.layers.0.self_attn.q_proj"),  # transformers 5
        ("t5", "lora_te3_encoder_block_1_layer_0_SelfAttention_v", "encoder.block.1.layer.0.SelfAttention.v"),
        ("llama", "lora_te_model_layers_0_self_attn_q_proj", "layers.0.self_attn.q_proj"),
    ],
)
def test_kohyas_names(kind: str, stem: str, site: str, language_folder: Any, tmp_path: Path):
    encoder = TextEncoder.load(language_folder(kind))
    sites = [name for name, module in encoder.model.named_modules() if lora.is_site(module)]
    site = next(name for name in sites if name.endswith(site))
    module: Any = encoder.model.get_submodule(site)
    parts = pair(1.0, 2, module.in_features, module.out_features)
    save_file(named(stem, parts), tmp_path / "x.safetensors")
    ((path, delta),) = read_lora_file(tmp_path / "x.safetensors", sites).items()
    assert path == site and delta.scale == 0.5
    before = module.weight.clone()
    lora.merge(encoder.model, {path: delta})
    torch.testing.assert_close(module.weight, before + 0.5 * parts["lora_up.weight"] @ parts["lora_down.weight"])


def test_alpha_of_a_header_and_none(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "x.safetensors"
    stem = "base_model.model.layers.0.self_attn.q_proj"
    tensors = {f"{stem}.lora_A.weight": torch.ones(4, 8), f"{stem}.lora_B.weight": torch.ones(8, 4)}
    save_file(tensors, path, {"lora_adapter_metadata": '{"text_encoder.lora_alpha": 8, "text_encoder.r": 4}'})
    assert read_lora_file(path, [])["layers.0.self_attn.q_proj"].scale == 2.0
    for header, scale in (
        ('{"lora_alpha": 8, "use_rslora": true}', 4.0),
        ('{"lora_alpha": 8, "alpha_pattern": {"q_proj": 32}}', 8.0),
    ):
        save_file(tensors, path, {"lora_adapter_metadata": header})
        assert read_lora_file(path, [])["layers.0.self_attn.q_proj"].scale == scale
    save_file(
        {f"text_encoder.{name}": t for name, t in tensors.items()},
        path,
        {"lora_adapter_metadata": '{"transformer.lora_alpha": 64, "text_encoder.lora_alpha": 8}'},
    )
    assert {delta.scale for delta in read_lora_file(path, []).values()} == {2.0}
    for header, message in (
        ('{"lora_alpha": 8, "use_dora": true}', "DoRA|use_dora"),
        ('{"lora_alpha": true}', "number"),
    ):
        save_file(tensors, path, {"lora_adapter_metadata": header})
        with pytest.raises(ValueError, match=message):
            read_lora_file(path, [])
    assert not caplog.records
    save_file(tensors, path)
    assert read_lora_file(path, [])["layers.0.self_attn.q_proj"].scale == 1.0
    assert "records no alpha" in caplog.text


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (named("lora_te_layers_7_x", pair(1.0)), "names no linear map of this language model"),
        (named("lora_unet_x", pair(1.0)), "is a LoRA for a vision model alone; give it to Load LoRA"),
        (
            {"lora_te_layers_0_x.hada_w1_a": torch.ones(2, 2)},
            r"is no plain LoRA: it holds lora_te_layers_0_x\.hada_w1_a",
        ),
        (
            {**named("lora_te1_layers_0_x", pair(1.0)), **named("lora_te2_layers_0_x", pair(1.0))},
            "two deltas for layers.0.x, one of them by the name lora_te2_layers_0_x",
        ),
        ({"lora_te_layers_0_x.lora_down.weight": torch.ones(2, 2)}, "lacks the up half of its delta"),
    ],
)
def test_what_is_refused(tensors: dict[str, torch.Tensor], message: str, tmp_path: Path):
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=message):
        read_lora_file(tmp_path / "x.safetensors", ["layers.0.x"])
