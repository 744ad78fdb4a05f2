"""The host's own text encoders as language models of bridges: what transformers computes with the same weights."""

# pyright: reportMissingImports=false

from __future__ import annotations

import importlib
import inspect
import json
import tempfile
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.text_encoders.omnigen2
import comfy.text_encoders.sa_t5
import comfy.utils
import torch
import transformers as hf
from comfy import sd1_clip, sdxl_clip
from comfy.supported_models_base import ClipTarget
from host_side import (
    BASE,
    MODELS,
    PROMPTS,
    bridge_,
    check,
    language_,
    node_classes,
    partly,
    refused,
    same_bits,
    weights,
)
from safetensors.torch import load_file

import nodes as stock

adapters = importlib.import_module("hyphen-pack.lavi_core.adapters")
checkpoint_ = importlib.import_module("hyphen-pack.lavi_core.checkpoint")
config_ = importlib.import_module("hyphen-pack.lavi_core.config")
from_clip = importlib.import_module("hyphen-pack.nodes.from_clip")
lora_ = importlib.import_module("hyphen-pack.lavi_core.lora")
prompt_ = importlib.import_module("hyphen-pack.lavi_core.prompt")

WIDTH = 64
SIZES = {"hidden_size": WIDTH, "num_attention_heads": 4, "num_hidden_layers": 3, "intermediate_size": 96}
T5 = {"d_model": WIDTH, "d_kv": 16, "d_ff": 96, "num_heads": 4, "num_layers": 3}


@dataclass(frozen=True)
class Case:
    """A text encoder of the host, its sizes under the key that the host reads them from, and its twin in transformers.

    inner: the prefix of its weights in a file that the host reads.
    """

    target: ClipTarget
    name: str
    sizes: dict[str, Any]
    twin: Any
    inner: str = ""


class TinyTokenizer(sd1_clip.SDTokenizer):
    """The host's class over a vocabulary of a few words."""

    def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None):
        where = {"embedding_directory": embedding_directory, "tokenizer_data": tokenizer_data or {}}
        folder = str(MODELS / "LLM" / "tiny-llama")
        super().__init__(folder, pad_token=0, tokenizer_class=hf.PreTrainedTokenizerFast, **where)


def tokenizer(name: str) -> Any:
    return lambda **where: sd1_clip.SD1Tokenizer(**where, name=name, tokenizer=TinyTokenizer)


VOCABULARY = json.loads((MODELS / "LLM" / "tiny-llama" / "config.json").read_text())["vocab_size"]
CASES = {
    "clip": Case(
        ClipTarget(sd1_clip.SD1Tokenizer, sd1_clip.SD1ClipModel),
        "clip_l",
        SIZES,
        lambda: hf.CLIPTextModel(hf.CLIPTextConfig(**SIZES, vocab_size=49408, hidden_act="quick_gelu")),
        "text_model.",
    ),
    "t5": Case(
        ClipTarget(tokenizer("t5base"), comfy.text_encoders.sa_t5.SAT5Model),
        "t5base",
        T5 | {"vocab_size": VOCABULARY, "is_gated_act": True, "dense_act_fn": "gelu_pytorch_tanh"},
        lambda: hf.T5EncoderModel(hf.T5Config(**T5, vocab_size=VOCABULARY, feed_forward_proj="gated-gelu")),
    ),
    "qwen": Case(
        ClipTarget(tokenizer("qwen25_3b"), comfy.text_encoders.omnigen2.Omnigen2Model),
        "qwen25_3b",
        SIZES | {"num_key_value_heads": 2, "vocab_size": VOCABULARY},
        lambda: hf.Qwen2Model(
            hf.Qwen2Config(**SIZES, num_key_value_heads=2, vocab_size=VOCABULARY, head_dim=128, rope_theta=1e6)
        ),
        "model.",
    ),
}


@cache
def twin(kind: str) -> Path:
    """A Hugging Face folder of random weights that float16 holds, with the tokenizer that the host ships."""
    case, folder = CASES[kind], Path(tempfile.mkdtemp(dir=BASE, prefix=f"twin-{kind}-"))
    torch.manual_seed(1)
    model = case.twin().eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.05)
    model.half().save_pretrained(folder)
    tokenizer = from_clip._tokenizer(host_clip(kind, {}), case.name)
    tokenizer.save_pretrained(folder)
    return folder


def host_clip(kind: str, state: dict[str, torch.Tensor] | None = None, **options: Any) -> comfy.sd.CLIP:
    case = CASES[kind]
    state = file_of(kind) if state is None else state
    options = {"dtype": torch.float32, f"{case.name}_model_config": case.sizes} | options
    return loaded(case.target, state, options)


def loaded(target: ClipTarget, state: dict[str, torch.Tensor], options: dict[str, Any]) -> comfy.sd.CLIP:
    if "state_dict" in inspect.signature(comfy.sd.CLIP).parameters:  # packed weights must be there from the start
        return comfy.sd.CLIP(target, state_dict=[dict(state)] if state else [], model_options=options)
    clip = comfy.sd.CLIP(target, model_options=options)
    if state:
        clip.load_sd(state)
    return clip


def file_of(kind: str) -> dict[str, torch.Tensor]:
    """The twin's weights by the names that the host's loaders read."""
    inner, state = CASES[kind].inner, load_file(twin(kind) / "model.safetensors")
    state = {f"{inner}{name.removeprefix(inner)}": tensor for name, tensor in state.items()}
    return state | {"text_projection.weight": torch.eye(WIDTH)} if kind == "clip" else state


def of(clip: comfy.sd.CLIP, encoder: str = "auto") -> Any:
    return node_classes["LaViBridgeLanguageModelFromCLIP"].execute(clip, encoder).args[0]


@cache
def host(kind: str) -> Any:
    """The twin's weights as the host loads them, in float32, through the node."""
    return of(host_clip(kind))


@cache
def usual(kind: str) -> Any:
    """The same weights by Load Language Model."""
    return language_.LanguageModel.load(twin(kind), torch.float32)


@cache
def bridge(kind: str, **recipe: Any) -> str:
    """A bridge made for the Hugging Face folder, with a language LoRA of a size that shows."""
    encoder = usual(kind).encoder
    adapter = config_.AdapterConfig(kind="mlp", in_width=WIDTH, inner_width=28, out_width=24)
    ranks = config_.LoRAConfig(rank=2, alpha=4.0)
    vision = config_.VisionConfig(
        model_id="tiny",
        target="unet",
        context_width=24,
        objective="flow",
        latent_channels=4,
        latent_scale=0.5,
        fingerprint="",
    )
    config = config_.BridgeConfig(
        language=encoder.config,
        prompt=prompt_.PromptRecipe(max_length=20, template="{prompt}, best quality", **recipe),
        adapter=adapter,
        vision=vision,
        language_lora=ranks,
        vision_lora=None,
    )
    torch.manual_seed(5)
    deltas = {}
    for path in encoder.lora_sites():
        outs, ins = encoder.model.get_submodule(path).weight.shape
        deltas[path] = lora_.Delta(torch.randn(2, ins) / ins**0.5, torch.randn(outs, 2) * 0.3, 2.0)
    name = f"from-clip-{kind}-{len(list((MODELS / 'lavi_bridges').iterdir()))}.safetensors"
    checkpoint_.BridgeCheckpoint(config, adapters.build(adapter).state_dict(), deltas, {}).save(
        MODELS / "lavi_bridges" / name
    )
    return name


def connected(name: str, model: Any, strength: float = 0.7, allowed: bool = False) -> Any:
    return bridge_.ConnectedBridge.load(name, model, strength, allowed)


def contexts(connected_bridge: Any) -> list[torch.Tensor]:
    return [connected_bridge.encode(prompt)[0][0][0] for prompt in PROMPTS]


def apart(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    assert [one.shape for one in ours] == [other.shape for other in theirs]
    return max((one - other).abs().max().item() for one, other in zip(ours, theirs, strict=True))


@check
def the_hosts_text_encoder_says_what_transformers_says():
    for kind in CASES:
        name, ours, theirs = bridge(kind), host(kind), usual(kind)
        plain = contexts(connected(name, theirs, 0.0))
        patched = contexts(connected(name, theirs))
        assert apart(contexts(connected(name, ours, 0.0)), plain) < 1e-4, kind
        assert apart(contexts(connected(name, ours)), patched) < 1e-4, kind
        assert apart(plain, patched) > 1e-2, kind
        half = of(host_clip(kind, dtype=torch.float16))
        assert apart(contexts(connected(name, half, 0.0)), plain) < 1e-4, kind
        assert apart(contexts(connected(name, half)), patched) < 1e-2, kind
        assert ours.encoder.config.fingerprint == theirs.encoder.config.fingerprint, kind
        assert sorted(ours.encoder.lora_sites()) == sorted(theirs.encoder.lora_sites()), kind


@check
def every_recipe_of_a_bridge_is_the_hosts_too():
    for kind in CASES:
        ours, theirs = host(kind), usual(kind)
        for recipe in (
            {"hidden_states": 0},
            {"hidden_states": -2},
            {"hidden_states": "normalized_mean"},
            {"language_mask": False},
            {"vision_mask": True},
            {"padding": "longest"},
            {"language_mask": False, "padding_side": "left"},
        ):
            name = bridge(kind, **recipe)
            heard = contexts(connected(name, theirs, 0.0))
            assert apart(contexts(connected(name, ours, 0.0)), heard) < 1e-4, (kind, recipe)
    left = {"padding_side": "left", "vision_mask": True}
    assert apart(*(contexts(connected(bridge("t5", **left), m, 0.0)) for m in (host("t5"), usual("t5")))) < 1e-4
    refused(["qwen25_3b", "left"], contexts, connected(bridge("qwen", **left), host("qwen"), 0.0))


@check
def fp8_copies_are_taken_and_close():
    for kind in CASES:
        name = bridge(kind)
        exact = contexts(connected(name, usual(kind)))
        plain = contexts(connected(name, usual(kind), 0.0))
        ours = of(host_clip(kind, dtype=torch.float8_e4m3fn))
        dtypes = {parameter.dtype for parameter in ours.encoder.model.parameters() if parameter.ndim > 1}
        assert dtypes == {torch.float8_e4m3fn}, (kind, dtypes)
        rough = contexts(connected(name, ours))
        assert apart(rough, exact) > 1e-4, kind
        mean = [sum((a - b).norm().item() for a, b in zip(rough, other, strict=True)) for other in (exact, plain)]
        assert mean[0] < 0.5 * mean[1], (kind, mean)


@check
def nothing_is_loaded_twice_and_all_is_given_back():
    for kind in CASES:
        comfy.model_management.unload_all_models()
        clip = host_clip(kind)
        (stocks,) = stock.CLIPTextEncode().encode(clip, PROMPTS[0])
        before = weights(clip.cond_stage_model)
        ours = of(clip)
        assert ours.patcher.model is clip.patcher.model
        held = {parameter.data_ptr() for parameter in clip.cond_stage_model.parameters()}
        assert {parameter.data_ptr() for parameter in ours.encoder.parameters()} <= held
        patched = connected(bridge(kind), ours)
        assert patched.clip.patcher.model is clip.patcher.model
        contexts(patched)
        assert not same_bits(before, weights(clip.cond_stage_model)), kind
        comfys = [p for p in comfy.model_management.loaded_models() if p.model is clip.patcher.model]
        assert len(comfys) == 1, comfys
        (again,) = stock.CLIPTextEncode().encode(clip, PROMPTS[0])
        assert torch.equal(stocks[0][0], again[0][0]) and same_bits(before, weights(clip.cond_stage_model)), kind
        contexts(patched)
        comfy.model_management.unload_all_models()
        assert same_bits(before, weights(clip.cond_stage_model)), kind
        assert patched.clip.get_sd().keys() == clip.get_sd().keys()


@check
def the_lora_survives_a_partial_load_of_the_hosts_encoder():
    for kind in CASES:
        name, ours = bridge(kind), connected(bridge(kind), host(kind))
        partly(ours.clip.patcher)
        pieces = ours.clip.tokenize(PROMPTS[0])
        heard = ours.clip.cond_stage_model.encode_token_weights(pieces)[0]
        assert (heard - contexts(connected(name, usual(kind)))[0]).abs().max() < 1e-4, kind


@check
def a_print_is_of_the_weights_without_the_loras_that_lie_in_them():
    clip = host_clip("clip")
    plain = of(clip).encoder.config.fingerprint
    key = "text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj"
    lora = {f"{key}.lora_up.weight": torch.randn(WIDTH, 1) * 9, f"{key}.lora_down.weight": torch.randn(1, WIDTH)}
    _, changed = comfy.sd.load_lora_for_models(None, clip, lora, 1.0, 1.0)
    stock.CLIPTextEncode().encode(changed, PROMPTS[0])
    ours = of(changed)
    assert ours.encoder.config.fingerprint == plain
    name = bridge("clip")
    assert apart(contexts(connected(name, ours, 0.0)), contexts(connected(name, of(clip), 0.0))) > 1e-2


@check
def a_clip_of_several_encoders_is_asked_which():
    sizes = {f"{name}_model_config": SIZES for name in ("clip_l", "clip_g")}
    target = ClipTarget(sdxl_clip.SDXLTokenizer, sdxl_clip.SDXLClipModel)
    clip = loaded(target, file_of("clip"), sizes | {"dtype": torch.float32})
    refused(["2 text encoders", "clip_g and clip_l", "choose"], of, clip)
    refused(["clip_g and clip_l", "not t5xxl"], of, clip, "t5xxl")
    name = bridge("clip")
    heard = contexts(connected(name, of(clip, "clip_l")))
    assert apart(heard, contexts(connected(name, usual("clip")))) < 1e-4
    other = of(clip, "clip_g")
    assert other.encoder.tokenizer.pad_token_id == 0 and clip.tokenizer.clip_g.tokenizer.pad_token_id == 49407
    refused(["made for twin-clip", "clip_g of ComfyUI", "fingerprint"], connected, name, other)


@check
def what_a_bridge_cannot_hear_is_refused():
    clip = host_clip("clip", {})
    clip.tokenizer.clip_l.tokenizer = object()
    refused(["clip_l", "object", "no Hugging Face tokenizer", "Load Language Model"], of, clip)
    for model in (usual("clip"), host("clip")):
        refused(["BridgeShell", "CLIP loader"], of, connected(bridge("clip"), model).clip)
    clip.cond_stage_model.clip_l.transformer = torch.nn.Linear(1, 1)
    refused(["Linear", "clip, t5, llama", "Load Language Model"], of, clip)


@check
def the_lora_node_takes_the_hosts_encoder():
    clip, name = host_clip("t5"), bridge("t5")
    patched = node_classes["LaViBridgeLanguageLoRA"].execute(of(clip), name, 0.7).args[0]
    assert apart(contexts(connected(name, patched, 0.0)), contexts(connected(name, usual("t5")))) < 1e-4
    lost = replace(of(clip), prefix="elsewhere.")
    refused(["made for a weight of"], node_classes["LaViBridgeLanguageLoRA"].execute, lost, name, 0.7)
    refused(["self_attn"], node_classes["LaViBridgeLanguageLoRA"].execute, of(clip), bridge("qwen"), 0.7)


def packed(kind: str, dtype: torch.dtype, largest: float) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The file with its linear maps as multiples of a scale, ``largest`` of them at most, and the scales by name."""
    state, scales = file_of(kind), {}
    for name, tensor in state.items():
        if tensor.ndim == 2 and "layer" in name and "relative_attention_bias" not in name:
            scales[name] = tensor.float().abs().max() / largest
            multiples = tensor.float() / scales[name]
            state[name] = (multiples if dtype.is_floating_point else multiples.round()).to(dtype)
    return state, scales


@check
def scaled_fp8_has_the_print_of_what_was_scaled():
    for kind in ("t5", "qwen"):
        state, scales = packed(kind, torch.float8_e4m3fn, 200.0)
        state |= {name.replace(".weight", ".scale_weight"): scale for name, scale in scales.items()}
        options = {"scaled_fp8": torch.float8_e4m3fn}
        if hasattr(comfy.utils, "convert_old_quants"):
            state, _ = comfy.utils.convert_old_quants(state | {"scaled_fp8": torch.zeros(2)}, "", {})
            options = {"quantization_metadata": comfy.utils.detect_layer_quantization(state, "")}
            assert options["quantization_metadata"], "the host does not know these files"
        ours = of(host_clip(kind, state, **options))
        name = bridge(kind)
        exact, plain, heard = (
            contexts(connected(name, model, strength))
            for model, strength in ((usual(kind), 0.7), (usual(kind), 0.0), (ours, 0.7))
        )
        off, without = (sum((a - b).norm().item() for a, b in zip(heard, o, strict=True)) for o in (exact, plain))
        assert 1e-4 < off < 0.5 * without, (kind, off, without)


@check
def int8_is_refused_for_its_print_and_taken_where_allowed():
    if "int8_tensorwise" not in getattr(importlib.import_module("comfy.ops"), "QUANT_ALGOS", {}):
        return
    state, scales = packed("t5", torch.int8, 127.0)
    told = torch.tensor(list(json.dumps({"format": "int8_tensorwise"}).encode()), dtype=torch.uint8)
    for name, scale in scales.items():
        state |= {name.replace(".weight", ".weight_scale"): scale, name.replace(".weight", ".comfy_quant"): told}
    ours = of(host_clip("t5", state, quantization_metadata={"mixed_ops": True}))
    refused(["made for twin-t5", "t5base of ComfyUI (int8_tensorwise)", "allow"], connected, bridge("t5"), ours)
    exact, heard = (contexts(connected(bridge("t5"), model, 0.7, True)) for model in (usual("t5"), ours))
    plain = contexts(connected(bridge("t5"), usual("t5"), 0.0))
    off, without = (sum((a - b).norm().item() for a, b in zip(heard, o, strict=True)) for o in (exact, plain))
    assert off < 0.5 * without, (off, without)
