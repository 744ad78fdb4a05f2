"""Load Language Model: a Hugging Face folder or a .gguf file under the host's memory management."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from . import folders
from .casting import managed, settle
from .schema import LanguageModelWire, schema

DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LanguageModel:
    """What runs on a LAVI_LANGUAGE_MODEL wire. Clones share the weights and differ in their patches (LoRA).

    prefix: what the patcher puts before the names of the trunk's weights.
    """

    name: str
    patcher: ModelPatcher  # its model is the core's TextEncoder
    prefix: str = "model."

    @property
    def encoder(self) -> Any:
        """The core's ``TextEncoder``; load the patcher before running it."""
        return self.patcher.model

    def settle(self, device: torch.device) -> None:
        """Bring to ``device`` what the host's memory management leaves to us."""
        settle(self.encoder, device)

    def clone(self) -> LanguageModel:
        return replace(self, patcher=self.patcher.clone())

    @classmethod
    def load(cls, path: Path, dtype: torch.dtype | None = None) -> LanguageModel:
        """Read it into the offload device's memory; the host moves it when it is used. dtype: None = by the device."""
        from ..lavi_core.language import TextEncoder

        progress = comfy.utils.ProgressBar(2)
        device = comfy.model_management.text_encoder_device()
        encoder = TextEncoder.load(path, dtype=dtype or best_dtype(device))
        progress.update(1)
        comfy.model_management.throw_exception_if_processing_interrupted()
        patcher = managed(encoder, device, comfy.model_management.text_encoder_offload_device())
        progress.update(1)
        return cls(path.name, patcher)


def best_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 before float16, whose range T5 and Gemma leave; float32 where neither is fast (the CPU)."""
    if comfy.model_management.should_use_bf16(device):
        return torch.bfloat16
    if comfy.model_management.should_use_fp16(device, prioritize_performance=False):
        return torch.float16
    return torch.float32


def is_language_model(path: Path) -> bool:
    """Whether a folder's config.json names a transformers model."""
    return "model_type" in folders.read_json(path / "config.json")


class LoadLanguageModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LaViBridgeLoadLanguageModel",
            display_name="Load Language Model (LaVi-Bridge)",
            description="Any Hugging Face language model, as a folder or a .gguf file, for a bridge to listen to.",
            search_aliases=["llm", "t5", "llama", "gguf", "text encoder"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=folders.names(*folders.LANGUAGE, folder=is_language_model, suffixes=(".gguf",)),
                    tooltip="A folder with config.json, model.safetensors and its tokenizer, or a .gguf file, in "
                    "models/LLM or models/text_encoders.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPES),
                    default="auto",
                    tooltip="Precision of the weights. auto: bfloat16 or float16 where the device is fast with it, "
                    "else float32.",
                ),
            ],
            outputs=[
                LanguageModelWire.Output(display_name="language_model", tooltip="The loaded language model, unpatched.")
            ],
        )

    @classmethod
    def validate_inputs(cls, model: str | None = None) -> bool | str:
        return folders.problem("language model", model, *folders.LANGUAGE)

    @classmethod
    def fingerprint_inputs(cls, model: str | None = None, **_: Any) -> str:
        return folders.stamp("language model", model, *folders.LANGUAGE)

    @classmethod
    def execute(cls, model: str, dtype: str) -> io.NodeOutput:
        path = folders.resolve("language model", model, *folders.LANGUAGE)
        return io.NodeOutput(LanguageModel.load(path, DTYPES[dtype]))
