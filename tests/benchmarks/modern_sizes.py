"""Newer vision models at their true sizes, as config.json of their folders have them: no weights, for meta tensors.

Where diffusers' own defaults are the released model, only the class is named; the others are recalled.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_FLOW = "FlowMatchEulerDiscreteScheduler"
_DYNAMIC = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "shift": 3.0}
_SD35 = {"joint_attention_dim": 4096, "pooled_projection_dim": 2048, "pos_embed_max_size": 384, "qk_norm": "rms_norm"}
_COSMOS = {
    "in_channels": 16,
    "out_channels": 16,
    "attention_head_dim": 128,
    "text_embed_dim": 1024,
    "max_size": [128, 240, 240],
    "rope_scale": [1.0, 4.0, 4.0],
    "extra_pos_embed_type": None,
}
_KLEIN = {"attention_head_dim": 128, "guidance_embeds": False}

VISION: dict[str, dict[str, Any]] = {
    "sd3-medium": {
        "_class_name": "SD3Transformer2DModel",
        **_SD35,
        "qk_norm": None,
        "pos_embed_max_size": 192,
        "num_layers": 24,
        "num_attention_heads": 24,
        "caption_projection_dim": 1536,
    },
    "sd35-medium": {
        "_class_name": "SD3Transformer2DModel",
        **_SD35,
        "num_layers": 24,
        "num_attention_heads": 24,
        "caption_projection_dim": 1536,
        "dual_attention_layers": list(range(13)),
    },
    "sd35-large": {
        "_class_name": "SD3Transformer2DModel",
        **_SD35,
        "num_layers": 38,
        "num_attention_heads": 38,
        "caption_projection_dim": 2432,
        "pos_embed_max_size": 192,
    },
    "flux-dev": {"_class_name": "FluxTransformer2DModel", "guidance_embeds": True},
    "flux-schnell": {"_class_name": "FluxTransformer2DModel"},
    "z-image": {"_class_name": "ZImageTransformer2DModel"},
    "lumina2": {
        "_class_name": "Lumina2Transformer2DModel",
        "hidden_size": 2304,
        "num_layers": 26,
        "num_attention_heads": 24,
        "num_kv_heads": 8,
        "cap_feat_dim": 2304,
        "axes_dim_rope": [32, 32, 32],
        "axes_lens": [300, 512, 512],
    },
    "qwen-image": {"_class_name": "QwenImageTransformer2DModel"},
    "aura-flow": {"_class_name": "AuraFlowTransformer2DModel", "pos_embed_max_size": 9216},
    "chroma": {"_class_name": "ChromaTransformer2DModel"},
    "cosmos-2b": {
        "_class_name": "CosmosTransformer3DModel",
        **_COSMOS,
        "num_attention_heads": 16,
        "num_layers": 28,
        "adaln_lora_dim": 256,
    },
    "flux2-klein-4b": {
        "_class_name": "Flux2Transformer2DModel",
        **_KLEIN,
        "num_layers": 5,
        "num_single_layers": 20,
        "num_attention_heads": 24,
        "joint_attention_dim": 7680,
    },
    "flux2-klein-9b": {
        "_class_name": "Flux2Transformer2DModel",
        **_KLEIN,
        "num_layers": 8,
        "num_single_layers": 24,
        "num_attention_heads": 32,
        "joint_attention_dim": 12288,
    },
    "wan-1.3b": {
        "_class_name": "WanTransformer3DModel",
        "num_attention_heads": 12,
        "num_layers": 30,
        "ffn_dim": 8960,
    },
    "ernie-image": {
        "_class_name": "ErnieImageTransformer2DModel",
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_layers": 36,
        "ffn_hidden_size": 12288,
        "text_in_dim": 3072,
    },
    "sana-1.6b": {"_class_name": "SanaTransformer2DModel", "caption_channels": 2304},
    "pixart-sigma": {
        "_class_name": "PixArtTransformer2DModel",
        "sample_size": 128,
        "caption_channels": 4096,
        "use_additional_conditions": False,
    },
    "kolors": {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 128,
        "block_out_channels": [320, 640, 1280],
        "attention_head_dim": [5, 10, 20],
        "transformer_layers_per_block": [1, 2, 10],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 5632,
        "encoder_hid_dim": 4096,
        "encoder_hid_dim_type": "text_proj",
    },
}

SCHEDULERS: dict[str, dict[str, Any]] = {
    "sd3-medium": {"_class_name": _FLOW, "shift": 3.0},
    "sd35-medium": {"_class_name": _FLOW, "shift": 3.0},
    "sd35-large": {"_class_name": _FLOW, "shift": 3.0},
    "flux-dev": {"_class_name": _FLOW, **_DYNAMIC},
    "flux-schnell": {"_class_name": _FLOW, "shift": 1.0},
    "z-image": {"_class_name": _FLOW, "shift": 3.0},
    "lumina2": {"_class_name": _FLOW, "shift": 6.0},
    "qwen-image": {"_class_name": _FLOW, **_DYNAMIC, "max_shift": 0.9, "max_image_seq_len": 8192},
    "aura-flow": {"_class_name": _FLOW, "shift": 1.73},
    "chroma": {"_class_name": _FLOW, **_DYNAMIC},
    "cosmos-2b": {"_class_name": _FLOW, "use_karras_sigmas": True, "sigma_min": 0.002, "sigma_max": 80.0},
    "flux2-klein-4b": {"_class_name": _FLOW, **_DYNAMIC},
    "flux2-klein-9b": {"_class_name": _FLOW, **_DYNAMIC},
    "wan-1.3b": {
        "_class_name": "UniPCMultistepScheduler",
        "use_flow_sigmas": True,
        "flow_shift": 3.0,
        "prediction_type": "flow_prediction",
    },
    "ernie-image": {"_class_name": _FLOW, "shift": 4.0},
    "sana-1.6b": {
        "_class_name": "DPMSolverMultistepScheduler",
        "use_flow_sigmas": True,
        "flow_shift": 3.0,
        "prediction_type": "flow_prediction",
    },
    "pixart-sigma": {"_class_name": "DPMSolverMultistepScheduler", "beta_start": 0.0001, "beta_end": 0.02},
    "kolors": {
        "_class_name": "EulerDiscreteScheduler",
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.014,
        "num_train_timesteps": 1100,
    },
}


def on_meta(name: str) -> nn.Module:
    import diffusers

    config = VISION[name]
    with torch.device("meta"):
        return getattr(diffusers, config["_class_name"]).from_config(config)
