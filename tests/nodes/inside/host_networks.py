"""Tiny text encoders of the host's own classes, the same networks in transformers, and bridges made for these."""

# pyright: reportMissingImports=false

from __future__ import annotations

import importlib
import inspect
import json
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.text_encoders.omnigen2
import comfy.text_encoders.sa_t5
import torch
import transformers as hf
from comfy import sd1_clip
from comfy.supported_models_base import ClipTarget
from host_side import BASE, MODELS, PROMPTS, bridge_, language_, node_classes
from safetensors.torch import load_file

adapters = importlib.import_module("hyphen-pack.lavi_core.adapters")
checkpoint_ = importlib.import_module("hyphen-pack.lavi_core.checkpoint")
config_ = importlib.import_module("hyphen-pack.lavi_core.config")
from_clip = importlib.import_module("hyphen-pack.nodes.from_clip")
lora_ = importlib.import_module("hyphen-pack.lavi_core.lora")
prompt_ = importlib.import_module("hyphen-pack.lavi_core.prompt")

WIDTH = 64
SIZES: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "intermediate_size": 96,
}
T5: dict[str, Any] = {"d_model": WIDTH, "d_kv": 16, "d_ff": 96, "num_heads": 4, "num_layers": 3}


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
QWEN: dict[str, Any] = {"head_dim": 128, "rope_theta": 1e6}  # of the host's class
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
        lambda: hf.Qwen2Model(hf.Qwen2Config(**SIZES, num_key_value_heads=2, vocab_size=VOCABULARY, **QWEN)),
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
        prompt=prompt_.PromptRecipe(**{"max_length": 20, "template": "{prompt}, best quality"} | recipe),
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
