"""Tiny language models, and bridges between them and vision models, all random."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from lavi_bridge.lavi_core.adapters import build, configure
from lavi_bridge.lavi_core.checkpoint import BridgeCheckpoint
from lavi_bridge.lavi_core.config import BridgeConfig, LoRAConfig, VisionConfig
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.lavi_core.lora import Delta
from lavi_bridge.lavi_core.prompt import PromptRecipe
from lavi_bridge.lavi_core.vision import VISION_TARGETS, LatentSpace
from safetensors.torch import load_file
from torch import nn

WIDTH, RANK = 32, 2
PROMPTS = ("a red circle left of a blue square", "", "two elephants in the forest (with a candy) " * 4)
RECIPE = PromptRecipe(max_length=16, template="{prompt}, best quality")


def language_model(folder: Path, kind: str, width: int = WIDTH, positions: int = 128) -> Path:
    """A Hugging Face folder: the real class with random weights and a real tokenizer of a few words."""
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "<s>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    raw.train_from_iterator([*PROMPTS, "best quality"], trainer)
    ends = [("<s>", 1), ("</s>", 2)]
    raw.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )
    tokenizer.save_pretrained(folder)
    sizes: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": positions,
        "vocab_size": len(tokenizer),
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    torch.manual_seed(1)
    model = {
        "bert": lambda: hf.BertModel(hf.BertConfig(**sizes), add_pooling_layer=False),
        "llama": lambda: hf.LlamaModel(hf.LlamaConfig(**sizes, num_key_value_heads=2)),
        "gemma": lambda: hf.Gemma3TextModel(
            hf.Gemma3TextConfig(**sizes, num_key_value_heads=2, head_dim=8, sliding_window=8)
        ),
        "gpt2": lambda: hf.GPT2Model(
            hf.GPT2Config(n_embd=width, n_layer=2, n_head=4, n_positions=positions, vocab_size=len(tokenizer))
        ),
        "t5": lambda: hf.T5EncoderModel(
            hf.T5Config(d_model=width, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=len(tokenizer))
        ),
    }[kind]().eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


def random_lora(model: nn.Module, sites: list[str]) -> dict[str, Delta]:
    """Deltas of a size that shows."""
    generator = torch.Generator().manual_seed(4)
    found = {}
    for path in sites:
        module: Any = model.get_submodule(path)
        weight = module.weight if isinstance(module, nn.Linear | nn.Conv2d) else module.weight.T
        down = torch.randn(RANK, *weight.shape[1:], generator=generator) / math.prod(weight.shape[1:]) ** 0.5
        up = torch.randn(weight.shape[0], RANK, *([1] * (weight.ndim - 2)), generator=generator) * 0.3
        found[path] = Delta(down, up, 2.0)
    return found


def bridge(
    path: Path,
    encoder: TextEncoder,
    vision: Any,
    name: str = "tiny-flow",
    kind: str = "unet",
    pooled: int | None = None,
    lora: bool = True,
    objective: str | None = None,
    adapter: Mapping[str, Any] = MappingProxyType({"kind": "mlp", "inner": 28}),
    **recipe: Any,
) -> BridgeCheckpoint:
    """A bridge file between the two, its adapter and both LoRAs random; lora=False leaves out that of the vision model.

    adapter: its kind and options. objective: as it is recorded; None = flow for the row "unet", else epsilon.
    """
    target = VISION_TARGETS[kind]
    width = target.context_width(vision.config)
    prompt = replace(RECIPE, **recipe)
    layers = encoder.config.num_layers if prompt.hidden_states == "learned_mean" else None
    widths = {"in_width": encoder.config.hidden_size * prompt.stacked, "out_width": width}
    made = configure(**adapter, **widths, pooled_width=pooled, layers=layers)
    ranks = LoRAConfig(rank=RANK, alpha=4.0)
    config = BridgeConfig(
        language=encoder.config,
        prompt=prompt,
        adapter=made,
        vision=VisionConfig(
            model_id=name,
            target=kind,
            context_width=width,
            objective=objective or ("flow" if kind == "unet" else "epsilon"),
            latent_channels=target.latent_channels(vision.config),
            latent_scale=LatentSpace(target.latent_scale or 0.5).factor,
            fingerprint="",
        ),
        language_lora=ranks,
        vision_lora=ranks if lora else None,
    )
    torch.manual_seed(5)
    weights = build(made).state_dict()
    if made.kind != "mlp":  # whose norms begin without effect, and whose mean with equal weights
        weights = {name: tensor + 0.3 * torch.randn_like(tensor) for name, tensor in weights.items()}
    checkpoint = BridgeCheckpoint(
        config,
        weights,
        random_lora(encoder.model, encoder.lora_sites()),
        random_lora(vision, target.sites(vision)) if lora else {},
    )
    checkpoint.save(path)
    return checkpoint


def peft_folder(folder: Path, language: Path, deltas: dict[str, Delta]) -> None:
    """The same LoRA as PEFT saves it, trained on the causal LM that holds the language model."""
    import transformers as hf
    from peft import LoraConfig, get_peft_model

    whole = hf.AutoModelForCausalLM.from_pretrained(language)
    wanted = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(deltas))
    model = get_peft_model(whole, wanted)
    for path, delta in deltas.items():
        site: Any = whole.model.get_submodule(path)
        site.lora_A["default"].weight.copy_(delta.down)
        site.lora_B["default"].weight.copy_(delta.up)
    model.save_pretrained(folder)  # type: ignore[arg-type]
    assert all(name.startswith("base_model.model.model.") for name in load_file(folder / "adapter_model.safetensors"))
