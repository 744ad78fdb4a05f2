"""A file that is no bridge is named by its tensors: those of real classes, and names that peers' files are known by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lavi_bridge.lavi_core import adapters
from lavi_bridge.lavi_core.checkpoint import BridgeCheckpoint, read_config
from lavi_bridge.lavi_core.config import AdapterConfig
from lavi_bridge.lavi_core.foreign_files import what_it_is
from safetensors.torch import save_file

FUSED = ("input_position_embeddings", "compression_queries", "wide_attention_blocks.0.attn.in_proj_weight")
UNFUSED = ("input_position_embeddings", "compression_queries", "wide_attention_blocks.0.attn.q_proj.weight")
TURBO = ("input_position_embeddings", "compression_queries", "wide_attention_blocks.0.q_proj.weight")
ELLA = ("time_embedding.linear_1.weight", "connector.latents", "connector.perceiver_blocks.0.attn.in_proj_weight")
PEERS = (  # names as their own code gives them, at the commits of tests/golden/README.md
    (
        (
            "blocks.0.cross_attn.q_proj.weight",
            "llm_adapter.embed.weight",
            "llm_adapter.blocks.0.norm_cross_attn.weight",
            "llm_adapter.blocks.0.cross_attn.k_norm.weight",
        ),
        "Anima's llm_adapter, Load Bridge reads it as it is",
    ),
    (("embed.weight", "blocks.0.norm_cross_attn.weight", "blocks.0.cross_attn.k_norm.weight"), "Anima's llm_adapter"),
    (("query_norms.0.weight", "semantic_attentions.0.q_proj.weight", "layer_mix_logits"), "Anima's connector"),
    (
        ("anima_v2_connector.semantic_resampler.query_tokens", "llm_adapter.embed.weight"),
        "Anima's connector for a second encoder (anima_v2_connector)",
    ),
    (
        (
            "conditioner.c0.W",
            "conditioner.c0.mu_table",
            "conditioner.segmenter.emb.weight",
            "conditioner.refiner.inp.bias",
        ),
        "AnimaT5Free's conditioner",
    ),
    (("llm_adapter.context_embedder.weight", "llm_adapter.context_embedder.bias"), "ai-toolkit's llm_adapter"),
    (
        ("te_adapter.adapter_modules.1.to_k_adapter.weight", "te_adapter.adapter_modules.1.to_v_adapter.weight"),
        "ai-toolkit's te_adapter",
    ),
    (
        ("adapter.query", "adapter.t5_embed.weight", "adapter.blocks.0.ln_kv.weight"),
        "a seeded resampler of gguf-trainer",
    ),
    (("adapter.query", "adapter.blocks.0.ln_kv.weight"), "a resampler of gguf-trainer, which speaks to LLaDA-Image"),
    (("adapter.cap_query", "adapter.slot_query", "adapter.seed_embed.weight"), "a Ming-Image or Qwen3.5 adapter"),
    (("adapter.slot_query", "adapter.seed_embed.weight", "adapter.bank_query"), "a Ming-Image or Qwen3.5 adapter"),
    (
        ("adapter.layer_map", "adapter.skip.weight", "adapter.blocks.0.ln_self.weight"),
        "a token-aligned adapter of gguf",
    ),
    (
        ("adapter.vision_proj.weight", "adapter.skip.weight", "adapter.blocks.0.ln_self.weight"),
        "a token-aligned adapter",
    ),
)


def classes() -> dict[str, torch.nn.Module]:
    import diffusers
    import transformers

    sizes: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    blocks: dict[str, Any] = {"block_out_channels": (8,), "norm_num_groups": 2}
    released = adapters.build(AdapterConfig(kind="mlp", in_width=8, inner_width=8, out_width=8))
    unet: dict[str, Any] = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    return {
        "an adapter as LaVi-Bridge's authors released them": released,
        "a VAE, which belongs in models/vae": diffusers.AutoencoderKL(**blocks),
        "a vision model, which belongs in models/diffusers": diffusers.UNet2DConditionModel(
            **blocks, **unet, cross_attention_dim=8, attention_head_dim=4
        ),
        "a text encoder, which belongs in models/text_encoders": transformers.CLIPTextModel(
            transformers.CLIPTextConfig(**sizes, vocab_size=9)
        ),
    }


@pytest.mark.parametrize("what", classes())
def test_a_file_is_named(what: str, tmp_path: Path):
    file = tmp_path / "x.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in classes()[what].state_dict().items()}, file)
    for read in (read_config, BridgeCheckpoint.load):
        with pytest.raises(ValueError, match=r"x\.safetensors is no bridge, but ") as refused:
            read(file)
        assert what in str(refused.value)


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (ELLA, "an ELLA connector"),
        *((names, "an LLM-to-SDXL adapter (RouWei)") for names in (FUSED, UNFUSED, TURBO)),
        *PEERS,
        (("lora_unet_x.lora_down.weight", "lora_unet_x.lora_up.weight"), "a LoRA"),
        (("base_model.model.layers.0.self_attn.q_proj.lora_A.weight",), "a LoRA"),
        (
            ("model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.decoder.conv_in.weight"),
            "a whole check",
        ),
        (("scale",), ""),
    ],
)
def test_names_tell(names: tuple[str, ...], what: str):
    assert what_it_is(names).startswith(what) and bool(what_it_is(names)) == bool(what)
