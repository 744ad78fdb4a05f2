"""Tiny random models of every language family of transformers: its own default config, each size made small by name."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import torch
from torch import nn

WIDTH, INNER, LAYERS, HEADS, POSITIONS, WINDOW = 32, 64, 3, 4, 130, 8
LIMIT = 30_000_000  # parameters; what is larger was not made small

# Name of a config's attribute -> its small value. Looked up at every depth; attributes that a config lacks stay away.
_SIZES: dict[str, Any] = {
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
_KEPT_LISTS = ("architectures",)
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
    "dbrx": {"attn_config": {"rope_theta": 10000.0}},
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
    "hunyuan_v1_moe": {"head_dim": 8, "moe_topk": 2, "num_shared_expert": 1},
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


def tiny_config(model_type: str, vocabulary: int) -> Any:
    """A transformers config of a few layers, 32 wide, with the ids of the tests' tokenizer.

    Raises what the config's class raises.
    """
    import transformers as hf

    kind: Any = hf.CONFIG_MAPPING[model_type]
    data = kind().to_dict()
    made = _merge(_shrunk(data, vocabulary), SPECIAL.get(model_type, {}))
    return kind.from_dict(made)


def _shrunk(data: dict[str, Any], vocabulary: int) -> dict[str, Any]:
    layers = next((data[n] for n in ("num_hidden_layers", "num_layers", "n_layer") if isinstance(data.get(n), int)), 0)
    chosen = _chosen_layers(data, layers)
    heads = next((data[n] for n in ("num_attention_heads", "num_heads") if isinstance(data.get(n), int)), 0)
    small: dict[str, Any] = {}
    for name, value in data.items():
        if name == "per_layer_config" and isinstance(value, dict):
            kept = {int(key): part for key, part in value.items()}
            small[name] = {str(i): _shrunk(kept[old], vocabulary) for i, old in enumerate(chosen) if old in kept}
        elif isinstance(value, dict):
            small[name] = _shrunk(value, vocabulary) if "model_type" in value else _with_few_axes(value, data)
        elif isinstance(value, list) and len(value) == layers > LAYERS and name not in _KEPT_LISTS:
            of_a_layer = [value[i] for i in chosen]
            size = _SIZES.get(name)
            small[name] = of_a_layer if size is None else [size for _ in of_a_layer]
        elif name in ("vocab_size", "vocab_size_per_layer_input", "unpadded_vocab_size"):
            small[name] = vocabulary
        elif name == "num_key_value_heads" and isinstance(value, int) and value == heads:
            small[name] = HEADS
        elif isinstance(value, int) and not isinstance(value, bool) and name in _SIZES:
            small[name] = len(chosen) if _SIZES[name] == LAYERS and value == layers else min(value, _SIZES[name])
        elif re.fullmatch(r"(pad|bos|eos)_token_id", name):
            small[name] = {"pad": 0, "bos": 1, "eos": 2}[name[:3]]
        elif name.endswith(("token_id", "token_index")) and isinstance(value, int) and value >= vocabulary:
            small[name] = vocabulary - 1 - sum(1 for other in small if other.endswith(("token_id", "token_index")))
        else:
            small[name] = value
    return small


def _with_few_axes(rotary: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """Rotary parameters, with the sections of the three axes in the proportion that the heads were made smaller."""
    made = dict(rotary)
    for name, value in rotary.items():
        if isinstance(value, dict):
            made[name] = _with_few_axes(value, data)
    sections = rotary.get("mrope_section")
    if isinstance(sections, list):
        width = (
            data.get("qk_rope_head_dim") or data.get("head_dim") or data["hidden_size"] // data["num_attention_heads"]
        )
        half = max(1, sum(sections) * 8 // width)
        made["mrope_section"] = [half - 2 * (half // 3), half // 3, half // 3]
    return made


def _chosen_layers(data: dict[str, Any], count: int) -> list[int]:
    """Of ``count`` layers the ones that are kept: one of each kind that the config tells apart, at least LAYERS."""
    lists = [v for k, v in data.items() if isinstance(v, list) and len(v) == count > LAYERS and k not in _KEPT_LISTS]
    if data.get("per_layer_config"):
        own = {int(key): str(part) for key, part in data["per_layer_config"].items()}
        lists.append([own.get(i, "") for i in range(count)])
    kinds = list(zip(*([str(x) for x in v] for v in lists), strict=True)) if lists else [()] * max(count, LAYERS)
    firsts = list({kind: i for i, kind in reversed(list(enumerate(kinds)))}.values())
    firsts = sorted(firsts)[: 2 * LAYERS]
    others = [i for i in range(len(kinds)) if i not in firsts]
    return sorted(firsts + others[: max(0, LAYERS - len(firsts))])


def _merge(data: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    for name, value in changes.items():
        data[name] = _merge(data.get(name) or {}, value) if isinstance(value, dict) else value
    return data


def tiny_model(model_type: str, vocabulary: int, head: bool = False) -> Any:
    """A model of that config with random weights, seeded, in float32 and eval mode.

    Raises ValueError for one that is not small, and what the model's class raises.
    """
    import transformers as hf

    config = tiny_config(model_type, vocabulary)
    loaders: tuple[Any, ...] = (hf.AutoModel, hf.AutoModelForTextEncoding)
    heads: tuple[Any, ...] = (hf.AutoModelForSeq2SeqLM, hf.AutoModelForImageTextToText, hf.AutoModelForMultimodalLM)
    heads += (hf.AutoModelForCausalLM, hf.AutoModelForMaskedLM)
    fitting = [
        one for one in ((*heads, *loaders) if head else (*loaders, *heads)) if type(config) in one._model_mapping
    ]
    if not fitting:
        raise ValueError(f"transformers has no model class for {model_type}")
    model: Any = None
    for loader in fitting:
        try:
            model = _small(loader, config)
            break
        except Exception:  # with another head it may be made
            if loader is fitting[-1]:
                raise
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and parameter.is_floating_point():  # transformers' 0.02 makes a layer the identity
                parameter.normal_(std=0.2)
        for module in model.modules() if model_type in ZEROED else ():
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx] = 0
    return model


def _small(loader: Any, config: Any) -> nn.Module:
    with suppress(RuntimeError), torch.device("meta"):  # some make their weights by what has no values there
        count = sum(p.numel() for p in loader.from_config(config).parameters())
        if count > LIMIT:
            raise ValueError(f"the tiny {config.model_type} has {count} parameters, more than {LIMIT}")
    torch.manual_seed(0)
    return loader.from_config(config).eval()
