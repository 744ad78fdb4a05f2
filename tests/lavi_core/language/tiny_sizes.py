"""Sizes of tiny language models: by the names that configs have for them, and for single families what these miss."""

from __future__ import annotations

from typing import Any

WIDTH, INNER, LAYERS, HEADS, POSITIONS, WINDOW = 32, 64, 3, 4, 130, 8

# Name of a config's attribute -> its small value. Looked up at every depth; attributes that a config lacks stay away.
SIZES: dict[str, Any] = {
    **dict.fromkeys(
        (
            *("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "embedding_size", "word_embed_proj_dim"),
            *("input_embedding_size", "output_embedding_size", "attention_hidden_size", "true_hidden_size"),
            *("intra_bottleneck_size", "emb_dim", "encoder_embed_dim", "text_embed_dim", "text_hidden_size"),
            *("out_hidden_size", "output_dim", "attention_dim", "channels", "mm_hidden_size", "encoder_hidden_size"),
            *("q_lora_rank", "kv_lora_rank", "entity_emb_size", "lru_width", "hidden_size_global", "width"),
            *("language_hidden_size", "cross_attention_hidden_size", "input_hidden_size", "text_d_model"),
        ),
        WIDTH,
    ),
    **dict.fromkeys(
        (
            *("intermediate_size", "d_ff", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "hidden_dim", "n_inner"),
            *("ffn_hidden_size", "moe_intermediate_size", "shared_expert_intermediate_size", "inner_dim", "ff_dim"),
            *("shared_intermediate_size", "intermediate_size_mlp", "dense_intermediate_size", "dff", "dim_feedforward"),
            *("moe_shared_expert_intermediate_size", "expert_ffn_hidden_size", "encoder_intermediate_size"),
            *("expert_intermediate_size", "feed_forward_hidden_size", "d_inner", "block_ff_dim", "ffn_size"),
            *("block_multiple_of",),
        ),
        INNER,
    ),
    **dict.fromkeys(
        (
            *("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "depth", "vision_layers"),
            *("decoder_layers", "num_decoder_layers", "num_encoder_layers", "layers", "num_global_layers"),
        ),
        LAYERS,
    ),
    **dict.fromkeys(
        (
            *("num_attention_heads", "num_heads", "n_head", "n_heads", "encoder_attention_heads", "attention_heads"),
            *("decoder_attention_heads", "heads", "attn_heads", "num_lora_heads"),
        ),
        HEADS,
    ),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "encoder_num_key_value_heads", "n_kv_heads"), 2),
    **dict.fromkeys(
        (
            *("head_dim", "d_kv", "kv_channels", "attention_head_size", "dim_head", "v_head_dim", "qk_nope_head_dim"),
            *("qk_rope_head_dim", "attention_head_dim", "global_head_dim", "d_head", "head_size", "mamba_d_head"),
            *("linear_key_head_dim", "linear_value_head_dim", "index_head_dim", "rotary_dim", "mamba_head_dim"),
            *("query_pre_attn_scalar", "indexer_head_dim", "swa_head_dim", "swa_v_head_dim"),
        ),
        8,
    ),
    **dict.fromkeys(
        (
            *("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "n_experts"),
            *("ffn_num_experts", "num_moe_experts"),
        ),
        4,
    ),
    **dict.fromkeys(("num_experts_per_tok", "moe_top_k", "moe_k", "num_experts_per_token", "top_k_experts"), 2),
    **dict.fromkeys(
        (
            "max_position_embeddings",
            "n_positions",
            "max_seq_len",
            "max_sequence_length",
            "max_encoder_position_embeddings",
        ),
        POSITIONS,
    ),
    **dict.fromkeys(
        ("sliding_window", "local_attention", "attention_window", "window_size", "attention_chunk_size", "swa_window"),
        WINDOW,
    ),
    **dict.fromkeys(("state_size", "ssm_state_size", "mamba_d_state"), 8),
    **dict.fromkeys(("chunk_size", "mamba_chunk_size"), 8),
    **dict.fromkeys(("image_size",), 32),
    **dict.fromkeys(("patch_size",), 8),
    **dict.fromkeys(("linear_num_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(("linear_num_key_heads", "index_n_heads"), 2),
    **dict.fromkeys(("linear_head_dim", "index_topk"), 8),
    "qk_head_dim": 16,
    "n_group": 1,
    "num_expert_group": 1,
    "topk_group": 1,
}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8}  # 8 heads of 8 are twice the width
_ROTATED = {"rope_type": "default", "rope_theta": 10000.0}
_BOTH = {"full_attention": _ROTATED, "sliding_attention": _ROTATED}
_KINDS = ["full_attention", "sliding_attention", "full_attention"]
_AXES = {"rope_parameters": {"mrope_section": [2, 1, 1]}}
_TWO_AXES = {"rope_parameters": {"mrope_section": [1, 1, 0]}}
_OF_AXES = (
    *("qwen2_vl_text", "qwen2_5_vl_text", "glm4v_text", "glm_image_text", "glm_ocr_text", "cosmos3_edge_text"),
    "paddleocr_vl_text",
)
_WITH_AXES = (
    *("qwen2_vl", "qwen2_5_vl", "glm4v", "glm_image", "glm_ocr", "glm46v", "glmga", "cosmos3_edge", "paddleocr_vl"),
    "qwen2_5_omni_thinker",
)
ZEROED = ("chinese_clip",)  # whose padding's embedding transformers overwrites with zeros when it loads it
# model_type -> attributes that the general rule does not get right; a dict is merged into the part of that name.
SPECIAL: dict[str, dict[str, Any]] = {
    **{name: _AXES for name in _OF_AXES},
    **{name: {"text_config": _AXES} for name in _WITH_AXES},
    "glm4v_moe_text": _TWO_AXES,
    "glm4v_moe": {"text_config": _TWO_AXES},
    "bamba": _MAMBA,
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "chameleon": {"vocabulary_map": {"<image>": 40, "IMGIMGA": 41}, "image_token_id": 40},
    "cohere_compass_text": {
        "num_hidden_layers": 4,
        "layer_types": _KINDS[1:] * 2,
        "rope_parameters": _BOTH,
        "head_dim": 128,
    },
    "cohere_compass": {
        "text_config": {
            "num_hidden_layers": 4,
            "layer_types": _KINDS[1:] * 2,
            "rope_parameters": _BOTH,
            "head_dim": 128,
        },
    },
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2, "topk_group": 1},
    "vilt": {"max_position_embeddings": POSITIONS},
    "deepseek_ocr2": {
        "text_config": {"mlp_layer_types": ["dense", "sparse", "sparse"], "num_experts_per_tok": 2, "topk_group": 1}
    },
    "diffusion_gemma": {"text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}},
    "dory": {
        "num_hidden_layers": 8,
        "layer_types": ["sliding_attention", "mlp", "full_attention", "mlp"] * 2,
        "n_input_layers": 2,
        "n_recurrent_layers": 4,
        "n_output_layers": 2,
    },
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "dots3_note_text": {"swa_head_dim": 16, "head_dim": 16, "adapter_in_dim": 32},
    "dots3_note": {"text_config": {"swa_head_dim": 16, "head_dim": 16, "adapter_in_dim": 32}},
    "emu3": {"vocabulary_map": {"<image>": 40, "<|extra_200|>": 41, "<|visual token 000000|>": 42}},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 8}},
    "ernie4_5_vl_moe": {
        "text_config": {"mlp_layer_types": ["dense", "sparse", "sparse"], "moe_intermediate_size": [64, 32]}
    },
    "esmc": {"num_key_value_heads": 4},
    "florence2": {
        "vision_config": {
            "depths": [1, 1, 1, 1],
            "embed_dim": [8, 8, 8, 8],
            "num_heads": [1, 1, 1, 1],
            "num_groups": [1, 1, 1, 1],
            "projection_dim": 32,
        }
    },
    "funnel": {"architectures": ["FunnelModel"], "block_sizes": [2, 2], "block_repeats": [1, 1]},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "intermediate_size": [64] * 4,
        "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0],
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 8,
    },
    "glm5_next_text": {"num_key_value_heads": 4, "index_kpool": 4},
    "glm5_next": {"text_config": {"num_key_value_heads": 4, "index_kpool": 4}},
    **{name: {"text_config": {"max_position_embeddings": POSITIONS}} for name in ("owlvit", "owlv2")},
    "granite4_vision": {
        "deepstack_layer_map": [],
        "qformer_config": {"num_attention_heads": 4},
        "vision_config": {"num_attention_heads": 4},
        "downsample_rate": "1/2",
    },
    "granitemoehybrid": _MAMBA,
    "hrm_text": {"num_layers_per_stack": 2, "num_hidden_layers": 16},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "num_experts": 4, "moe_topk": 2, "num_shared_expert": 1},
    "hunyuan_vl_text": {"head_dim": 8},
    "hunyuan_vl": {"text_config": {"head_dim": 8}},
    "janus": {"vq_config": {"num_embeddings": 64, "base_channels": 32, "latent_channels": 32}},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False, "mamba_dt_rank": 4},
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8, "input_size": 32},
    "led": {"max_encoder_position_embeddings": 128},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "lilt": {"hidden_size": 48},
    "longcat_flash": {"zero_expert_num": 2, "moe_topk": 2},
    "mamba2": {"num_heads": 8, "n_groups": 2},
    "mistral4": {"head_dim": 16},
    "ministral": {"head_dim": 8},
    "moonshine_streaming": {},
    "molmo2": {"adapter_config": {"vision_feature_layer": [2, 1]}},
    "nemotron": {"num_key_value_heads": 2},
    "neomme": {"rope_parameters": {"full_attention": {"partial_rotary_factor": 0.5}}},
    "perceiver": {"d_latents": 32, "num_latents": 16, "num_self_attends_per_block": 3},
    "qwen4_exp_text": {
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "ngram_vocab_size_base": 100,
        "split_ngram_parts": 1,
    },
    "qwen4_exp": {
        "text_config": {
            "indexer_budget": 8,
            "indexer_compress_ratio": 2,
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 8,
            "ngram_vocab_size_base": 100,
            "split_ngram_parts": 1,
        }
    },
    "reformer": {"axial_pos_embds_dim": [8, 24], "axial_pos_shape": [16, 16], "attn_layers": ["local", "lsh", "local"]},
    "step3p7": {"text_config": {"sliding_window": 8}},
    "vibevoice_asr": {
        "acoustic_tokenizer_encoder_config": {"num_filters": 2, "depths": [1] * 7},
        "semantic_tokenizer_encoder_config": {"num_filters": 2, "depths": [1] * 7},
    },
    "xlstm": {"embedding_dim": 32, "num_blocks": 3},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "use_mamba_kernels": False,
        "mamba_dt_rank": 4,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "num_hidden_layers": 4,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "num_hidden_layers": 4,
        "hybrid_layer_ids": [1, 3],
        "mamba_headdim": 8,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "kv_channels": 8,
        "use_mamba_kernels": False,
        "adapter_rank": 4,
        "num_query_groups": 4,
        "num_key_value_heads": 4,
    },
}
