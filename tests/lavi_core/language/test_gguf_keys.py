"""GGUF files against the folders they were made of: each key and tensor is honoured, or refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.lavi_core.language.facts import differing

from ..conftest import write_tokenizer
from .gguf_models import write_gguf

IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES: dict[str, Any] = {
    **IDS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
}
GROUPED: dict[str, Any] = {**SIZES, "num_key_value_heads": 2}
GEMMA: dict[str, Any] = {**GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16}
T5: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "pad_token_id": 0}
LAYERS: dict[str, Any] = {
    "context_length": 256,
    "feed_forward_length": 64,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-6,
}
EPS = {"rms_norm_eps": 1e-6}
LLAMA = {**LAYERS, "rope.dimension_count": 8}
GEMMA_KEYS = {**LAYERS, "attention.key_length": 8, "attention.value_length": 8, "attention.sliding_window": 16}
T5_KEYS = {
    "context_length": 512,
    "feed_forward_length": 64,
    "attention.head_count": 4,
    "attention.key_length": 8,
    "attention.layer_norm_epsilon": 1e-6,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "attention.relative_buckets_count": 32,
}
LONG = {"short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [2.0, 3.0, 4.0, 5.0]}
LONG_TENSORS = {f"rope_factors_{k[:-7]}.weight": np.array(v, dtype=np.float32) for k, v in LONG.items()}


def rope(**values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 20000.0, "rope_type": "default", **values}}


def llama3_factors(width: int, base: float, factor: float) -> np.ndarray:
    """By the formula of Llama 3.1 (transformers' modeling_rope_utils.py)."""
    config = hf.LlamaConfig(
        hidden_size=width,
        num_attention_heads=1,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": base,
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    )
    plain = 1.0 / base ** (torch.arange(0, width, 2).float() / width)
    return (plain / hf.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, None)[0]).numpy()


LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64}
THETA = {"rope.freq_base": 20000.0}
GEMMA3_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
}
# case -> (class, what its config takes, architecture, keys, further tensors)
CASES: dict[str, tuple[str, dict[str, Any], str, dict[str, Any], dict[str, np.ndarray]]] = {
    "linear": (
        *("LlamaForCausalLM", {**GROUPED, **EPS, **rope(rope_type="linear", factor=4.0)}, "llama"),
        *({**LLAMA, **THETA, "rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, {}),
    ),
    "Llama 3.1": (
        "LlamaForCausalLM",
        {**GROUPED, **EPS, "head_dim": 32, **rope(rope_type="llama3", factor=8.0, **LLAMA3)},
        "llama",
        {**LAYERS, "attention.key_length": 32, "attention.value_length": 32, "rope.dimension_count": 32, **THETA},
        {"rope_freqs.weight": llama3_factors(32, 20000.0, 8.0)},
    ),
    "factors of another kind": (
        "LlamaForCausalLM",
        {
            **{**GROUPED, **EPS},
            **rope(
                rope_type="longrope",
                short_factor=LONG["short_factor"],
                long_factor=LONG["short_factor"],
                original_max_position_embeddings=256,
                attention_factor=1.0,
            ),
        },
        "llama",
        {**LLAMA, **THETA},
        {"rope_freqs.weight": LONG_TENSORS["rope_factors_short.weight"]},
    ),
    "biases": (
        "LlamaForCausalLM",
        {**GROUPED, **EPS, "attention_bias": True, "mlp_bias": True},
        "llama",
        {**LLAMA, "rope.freq_base": 10000.0},
        {},
    ),
    "wider heads": (
        "Qwen3ForCausalLM",
        {**GROUPED, **EPS, "head_dim": 16},
        "qwen3",
        LAYERS | {"attention.key_length": 16},
        {},
    ),
    "yarn": (
        "Qwen2ForCausalLM",
        {**GROUPED, **EPS, **rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)},
        "qwen2",
        {**LAYERS, **THETA, **YARN},
        {},
    ),
    "experts": (
        "Qwen3MoeForCausalLM",
        {
            **{**GROUPED, **EPS, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2},
            **{"moe_intermediate_size": 24, "norm_topk_prob": True},
        },
        "qwen3moe",
        {
            **{**LAYERS, "attention.key_length": 8, "expert_count": 4, "expert_used_count": 2},
            "expert_feed_forward_length": 24,
        },
        {},
    ),
    "long and short factors": (
        "Phi3ForCausalLM",
        {
            **{**GROUPED, **EPS, "original_max_position_embeddings": 64},
            **rope(rope_type="longrope", original_max_position_embeddings=64, **LONG),
        },
        "phi3",
        {
            **{**LAYERS, **THETA, "rope.dimension_count": 8, "rope.scaling.original_context_length": 64},
            **{"rope.scaling.attn_factor": float(np.sqrt(1 + np.log(4) / np.log(64))), "attention.sliding_window": 0},
        },
        LONG_TENSORS,
    ),
    "part of a head": (
        "StableLmForCausalLM",
        {**GROUPED, "hidden_size": 64, "layer_norm_eps": 1e-6, **rope(partial_rotary_factor=0.5)},
        "stablelm",
        {
            **{key: value for key, value in LAYERS.items() if "rms" not in key},
            **{
                **THETA,
                "attention.layer_norm_epsilon": 1e-6,
                "rope.dimension_count": 8,
                "use_parallel_residual": False,
            },
        },
        {},
    ),
    "GPT-2": (
        "GPT2LMHeadModel",
        {**IDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
        "gpt2",
        {
            **{"context_length": 256, "feed_forward_length": 128, "attention.head_count": 4},
            "attention.layer_norm_epsilon": 1e-5,
        },
        {},
    ),
    "StarCoder2": (
        "Starcoder2ForCausalLM",
        {**GROUPED, "norm_epsilon": 1e-6, **rope()},
        "starcoder2",
        {**{k: v for k, v in LAYERS.items() if "rms" not in k}, **THETA, "attention.layer_norm_epsilon": 1e-6},
        {},
    ),
    "Mamba": (
        "MambaForCausalLM",
        {**IDS, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
        "mamba",
        {
            **{"context_length": 2**20, "feed_forward_length": 0, "attention.head_count": 0, "ssm.conv_kernel": 4},
            **{"ssm.inner_size": 64, "ssm.state_size": 8, "ssm.time_step_rank": 2, "ssm.dt_b_c_rms": False},
            "attention.layer_norm_rms_epsilon": 1e-5,
        },
        {},
    ),
    "Gemma 2": (
        "Gemma2ForCausalLM",
        {**GEMMA, "attn_logit_softcapping": 2.0},
        "gemma2",
        {**GEMMA_KEYS, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 30.0},
        {},
    ),
    "Gemma 3": (
        "Gemma3ForCausalLM",
        {**GEMMA, "num_hidden_layers": 7, "rope_parameters": GEMMA3_ROPE},
        "gemma3",
        {**GEMMA_KEYS, "rope.freq_base": 1e6, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
        {},
    ),
    "T5": ("T5EncoderModel", T5, "t5encoder", T5_KEYS, {}),
    "T5 v1.1": ("T5EncoderModel", {**T5, "feed_forward_proj": "gated-gelu"}, "t5encoder", T5_KEYS, {}),
    "UMT5 of another name": ("UMT5EncoderModel", T5, "t5encoder", T5_KEYS, {}),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(folder, the model of a case with its head)"""

    def make(case: str) -> tuple[Path, Any]:
        kind, values, *_ = CASES[case]
        folder = tmp_path_factory.mktemp("model")
        vocabulary = len(write_tokenizer(folder))
        torch.manual_seed(0)
        model = getattr(hf, kind)(getattr(hf, kind).config_class(vocab_size=vocabulary, **values))
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
            else:
                parameter.data += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(folder)
        return folder, model

    return make


def last(encoder: TextEncoder) -> torch.Tensor:
    ids = torch.arange(5, 95)[None]
    with torch.no_grad():
        return encoder.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state


@pytest.mark.skipif(hf.__version__ < "5", reason="the configs here are written for transformers 5")
@pytest.mark.parametrize("case", CASES)
def test_a_file_says_what_its_folder_says(case: str, made, tmp_path):
    folder, model = made(case)
    *_, architecture, keys, more = CASES[case]
    path = write_gguf(tmp_path / "plain.gguf", folder, model, architecture, keys, more)
    ours, theirs = TextEncoder.load(path), TextEncoder.load(folder)
    error = (last(ours) - last(theirs)).norm() / last(theirs).norm()
    assert error < 1e-5
    skeleton = TextEncoder.skeleton(path).config
    assert skeleton.fingerprint == ours.config.fingerprint is not None
    a, b = ({key: value for key, value in c.config.facts.items() if key != "tokens"} for c in (ours, theirs))
    assert differing(a, b) is None  # known as a copy of the folder


@pytest.mark.parametrize(
    ("case", "keys", "more", "without", "message"),
    [
        ("linear", {"attention.scale": 0.5}, {}, (), r"says llama\.attention\.scale = 0\.5"),
        ("linear", {"expert_count": 4}, {}, (), r"says llama\.expert_count = 4"),
        ("linear", {"attention.causal": False}, {}, (), r"says llama\.attention\.causal = False"),
        ("linear", {"attention.key_length": 8, "rope.dimension_count": 4}, {}, (), "rotates 4 of the 8 channels"),
        ("linear", {"rope.scaling.type": "longrope2"}, {}, (), "by 'longrope2', which is not read here"),
        ("linear", {"rope.scaling.attn_factor": 0.5}, {}, (), "by 'linear' and by tensors"),
        ("linear", {"rope.scaling.type": "longrope"}, {}, (), "by 'longrope' and by tensors"),
        ("linear", {}, {"rope_factors_long.weight": np.ones(4, np.float32)}, (), "by tensors .rope_factors_long"),
        ("linear", {}, {"rope_freqs.weight": np.full(4, 2, np.float32)}, (), "by 'linear' and by tensors .rope_freqs"),
        ("yarn", {"rope.scaling.factor": 0.0}, {}, (), "by 'yarn without a factor'"),
        ("linear", {"rope.freq_base": 0.0}, {}, (), r"a rotary base of 0\.0, which must be above 0"),
        ("linear", {"attention.head_count": [4, 2]}, {}, (), "has other heads in each layer"),
        ("linear", {"attention.head_count": 3}, {}, (), "is no llama model that transformers knows"),
        ("yarn", {"rope.scaling.yarn_log_multiplier": 0.1}, {}, (), "by 'rope.scaling.yarn_log_multiplier'"),
        ("linear", {}, {"blk.0.attn_q_norm.weight": np.ones(8, np.float32)}, (), r"no place for, first blk\.0\.attn_q"),
        ("biases", {}, {}, ("o_proj.bias",), r"lacks 2 tensors of LlamaModel in their shapes, first layers\.0\.self_a"),
        ("yarn", {"attention.sliding_window": 16}, {}, (), r"says qwen2\.attention\.sliding_window = 16"),
    ],
)
def test_what_cannot_be_honoured_is_refused(case, keys, more, without, message, made, tmp_path):
    folder, model = made(case)
    *_, architecture, plain, tensors = CASES[case]
    path = write_gguf(
        tmp_path / "odd.gguf", folder, model, architecture, {**plain, **keys}, {**tensors, **more}, without
    )
    with pytest.raises(ValueError, match=message) as refused:
        TextEncoder.load(path)
    assert len(str(refused.value).splitlines()) == 1
    with pytest.raises(ValueError, match=message):
        TextEncoder.verify(path)


def test_heads_decoders_and_pictures_are_passed_over(made, tmp_path):
    folder, model = made("linear")
    *_, architecture, keys, _ = CASES["linear"]
    more = {name: np.ones((4, 4), np.float32) for name in ("output.bias", "v.patch_embd.weight", "mm.0.weight")}
    path = write_gguf(tmp_path / "more.gguf", folder, model, architecture, keys, more)
    assert torch.equal(last(TextEncoder.load(path)), last(TextEncoder.load(folder)))


@pytest.mark.parametrize(
    ("case", "key"), [("part of a head", "rope.dimension_count"), ("Gemma 3", "rope.freq_base"), ("T5", "epsilon")]
)
def test_a_file_that_leaves_a_key_to_a_default_is_refused(case: str, key: str, made, tmp_path):
    """The defaults of llama.cpp are not those of transformers."""
    folder, model = made(case)
    *_, architecture, plain, tensors = CASES[case]
    keys = {name: value for name, value in plain.items() if not name.endswith(key)}
    path = write_gguf(tmp_path / "short.gguf", folder, model, architecture, keys, tensors)
    with pytest.raises(ValueError, match=r"short\.gguf does not say .*" + key.split(".")[0]):
        TextEncoder.load(path)
