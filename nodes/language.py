"""Load Language Model: a folder, a .gguf or a lone .safetensors file under the host's memory management."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from comfy.cli_args import args
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from . import folders
from .casting import managed, settle
from .notice import notice, repeat, take_back
from .progress import cancellable, with_progress
from .schema import LanguageModelWire, advanced, schema
from .shared_patcher import shared

AUTO = "auto"
OURS = "model."  # before the names of weights in the core's TextEncoder
FLAGS = ("fp16_text_enc", "bf16_text_enc", "fp32_text_enc")  # of the host's command line
DTYPES = {AUTO: None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# What a user calls a precision -> the dtype of the computation, and how the weights lie in memory.
PRECISIONS: dict[str, tuple[torch.dtype | None, str]] = {
    **{name: (dtype, "stored") for name, dtype in DTYPES.items()},
    "8-bit": (None, "8-bit"),
    "4-bit": (None, "4-bit"),
}


@dataclass(frozen=True)
class LanguageModel:
    """What runs on a LAVI_LANGUAGE_MODEL wire. Clones share the weights and differ in their patches (LoRA).

    prefix: what the patcher puts before the names of the trunk's weights.
    """

    name: str
    patcher: ModelPatcher  # its model is the core's TextEncoder
    prefix: str = OURS

    def __str__(self) -> str:
        made = self.encoder.config
        return f"language model {self.name} ({made.family}, {made.num_layers} layers of width {made.hidden_size})"

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
    def load(
        cls, path: Path, dtype: torch.dtype | None = None, weights: str = "stored", config: Path | None = None
    ) -> LanguageModel:
        """Read it into the offload device's memory; the host moves it when it is used. While it is there, whoever
        loads it in the same way is given a clone.

        dtype: of the computation, None = by the device. weights: how they lie in memory, config: where a lone file's
        config and tokenizer are; see the core's ``TextEncoder.load``. The user sees how far it is, and may cancel
        it, and each pass later on.
        """
        from ..lavi_core.language import TextEncoder
        from ..lavi_core.language.folder import left_beside

        if (beside := left_beside(path)) is not None:
            repeat(beside)  # the core logs it
        device = comfy.model_management.text_encoder_device()
        if dtype is None and weights == "stored" and comfy.model_management.text_encoder_dtype(device).itemsize == 1:
            weights = "8-bit"  # --fp8_e4m3fn-text-enc and its like ask for as many bytes, and lose more
        how: dict[str, Any] = {"dtype": dtype or best_dtype(device, path, config), "weights": weights, "config": config}
        key = (*map(str, how.items()), device, *(folders.stamp_of(at) for at in (path, config) if at is not None))
        how["tokenizers"] = folders.host_tokenizers()

        def read() -> ModelPatcher:
            encoder = with_progress(lambda progress: TextEncoder.load(path, progress=progress, **how))
            cancellable(encoder.model, encoder.layers())
            return managed(encoder, device, comfy.model_management.text_encoder_offload_device())

        return cls(path.name, shared(key, read))


def best_dtype(device: torch.device, path: Path, config: Path | None = None) -> torch.dtype:
    """What ComfyUI was started with for its text encoders (--fp16-text-enc and its like); else bfloat16 before float16,
    whose range some models leave: these, and any model where neither is fast (the CPU), are float32. config: the folder
    of a lone file's config."""
    if any(getattr(args, flag, False) for flag in FLAGS):
        return comfy.model_management.text_encoder_dtype(device)
    if comfy.model_management.should_use_bf16(device):
        return torch.bfloat16
    narrow = comfy.model_management.should_use_fp16(device, prioritize_performance=False)
    return torch.float16 if narrow and not _leaves_float16(path, config) else torch.float32


def _leaves_float16(path: Path, config: Path | None) -> bool:
    """Of a folder by its config.json, of a GGUF file by its architecture; of a lone file by the config that is given,
    or lies in the folder of its name, and where there is none it is a CLIP or a T5, which its tensors' names tell."""
    from ..lavi_core.language.finite import leaves_float16
    from ..lavi_core.language.gguf_file import gguf_architecture, is_gguf
    from ..lavi_core.language.single_file import is_t5

    if is_gguf(path):
        return leaves_float16({"model_type": gguf_architecture(path)})
    beside = config or (path if path.is_dir() else path.with_suffix(""))
    known = folders.read_json(beside / "config.json")
    return leaves_float16(known) if known or path.is_dir() else is_t5(path)


def is_language_model(path: Path) -> bool:
    """Whether a folder's config.json names a transformers model."""
    return "model_type" in folders.read_json(path / "config.json")


def is_config(path: Path) -> bool:
    """Whether a folder can say what the weights in a lone file are: it has a config.json and a tokenizer."""
    names = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model")
    return is_language_model(path) and any((path / name).is_file() for name in names)


def models() -> list[str]:
    """What can be chosen: folders, .gguf files and lone .safetensors files, but for those of a LoRA."""
    found = folders.names(*folders.LANGUAGE, folder=is_language_model, suffixes=(".gguf", ".safetensors"))
    return [name for name in found if not name.endswith("adapter_model.safetensors")] or [folders.NONE_FOUND]


class LoadLanguageModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        configs = [name for name in folders.names(*folders.LANGUAGE, folder=is_config) if name != folders.NONE_FOUND]
        return schema(
            node_id="LaViBridgeLoadLanguageModel",
            display_name="Load Language Model (LaVi-Bridge)",
            description="Any Hugging Face language model, as a folder, a .gguf file or a lone .safetensors file, for a "
            "bridge to listen to.",
            search_aliases=["llm", "t5", "llama", "gguf", "fp8", "4-bit", "text encoder"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=models(),
                    tooltip="A folder with config.json, model.safetensors and its tokenizer, a .gguf file, or a lone "
                    ".safetensors file, in models/LLM or models/text_encoders.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(PRECISIONS),
                    default="auto",
                    tooltip="Precision. auto: bfloat16 or float16 where the device is fast with it, else float32. "
                    "8-bit and 4-bit: a weight takes 8.5 or 5 bits and is dequantised when it is used. Weights that "
                    "are quantised in the file stay as they are there, whatever is chosen.",
                ),
                advanced(
                    io.Combo.Input(
                        "config",
                        options=[AUTO, *configs],
                        default=AUTO,
                        optional=True,
                        tooltip="For a lone .safetensors file, or a .gguf file without a tokenizer: the folder with "
                        "its config.json and tokenizer. auto: the folder beside it that has its name; CLIP and T5 "
                        "encoders are known by their shapes.",
                    )
                ),
            ],
            outputs=[
                LanguageModelWire.Output(display_name="language_model", tooltip="The loaded language model, unpatched.")
            ],
        )

    @classmethod
    def validate_inputs(cls, model: str | None = None) -> bool | str:
        return folders.problem("language model", model, *folders.LANGUAGE)  # config is one of its options, or refused

    @classmethod
    def fingerprint_inputs(cls, model: str | None = None, config: str | None = None, **_: Any) -> str:
        where = None if config == AUTO else config
        chosen = ("language model", model), ("config", where)
        return "".join(folders.stamp(what, name, *folders.LANGUAGE) for what, name in chosen)

    @classmethod
    def execute(cls, model: str, dtype: str, config: str = AUTO) -> io.NodeOutput:
        take_back()
        path = folders.resolve("language model", model, *folders.LANGUAGE)
        where = None if config == AUTO else folders.resolve("config", config, *folders.LANGUAGE)
        if where is not None and path.is_dir():
            notice(f"config does nothing here: {model} is a folder, which has its own config.json and tokenizer")
        return io.NodeOutput(LanguageModel.load(path, *PRECISIONS[dtype], where))
