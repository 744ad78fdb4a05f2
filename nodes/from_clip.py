"""Language Model from CLIP: a text encoder that ComfyUI itself has loaded, as the language model of a bridge.

Its weights, their precision, their place in memory and their patches stay the host's; tokens, padding, masks and the
choice of hidden states are the bridge's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import comfy.ops
import comfy.sd
import torch
from comfy.clip_model import CLIPTextModel_
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP
from comfy.sd1_clip import SDClipModel, SDTokenizer
from comfy.text_encoders.llama import Llama2_
from comfy.text_encoders.t5 import T5
from comfy_api.latest import io
from torch import Tensor, nn

from .clip import BridgeShell
from .language import LanguageModel
from .schema import LanguageModelWire, schema

AUTO = "auto"
# The names of the host's text encoders that come together with others in one CLIP.
ENCODERS = (AUTO, "clip_l", "clip_g", "t5xxl", "llama", "qwen25_7b", "mt5xl", "byt5_small")


@dataclass(frozen=True, kw_only=True)
class HostFamily:
    """How one class of the host's text encoders is read. Its modules have the names of the Hugging Face class.

    family: the core's row of facts. embedding, positions: paths of the tables of tokens and of positions; "" = it has
    none. forward: (model, ids [B T], mask [B T] | None) -> hidden states [B T D] after the final norm, float32.
    """

    kind: type[nn.Module]
    family: str
    embedding: str
    positions: str = ""
    forward: Callable[[Any, Tensor, Tensor | None], Tensor]


def _whole(model: Any, ids: Tensor, mask: Tensor | None) -> Tensor:
    return model(ids, attention_mask=mask, dtype=torch.float32)[0]


def _llama(model: Any, ids: Tensor, mask: Tensor | None) -> Tensor:
    _some_token(model, mask)
    return _whole(model, ids, mask)


def _some_token(model: Any, mask: Tensor | None) -> None:
    """Raises ValueError where a prompt is masked whole: the host's attention then hears its padding, or gives NaN
    (0.3.64), and that of transformers hears nothing."""
    if mask is not None and not bool(mask.any(1).all()):
        raise ValueError(
            "a prompt without tokens, whose padding this bridge masks, is heard otherwise by ComfyUI's "
            f"{type(model).__name__} than in training; load its Hugging Face folder with Load Language Model"
        )


def _clip(model: Any, ids: Tensor, mask: Tensor | None) -> Tensor:
    """What the host's class does for a prompt of all its positions, for one of any length."""
    _some_token(model, mask)
    length = ids.shape[1]
    places = comfy.ops.cast_to(model.embeddings.position_embedding.weight, torch.float32, ids.device)
    x = model.embeddings.token_embedding(ids, out_dtype=torch.float32) + places[:length]
    hidden = torch.ones(length, length, dtype=torch.bool, device=ids.device).triu(1)
    if mask is not None:
        hidden = hidden | (mask == 0)[:, None, None, :]
    lowest = torch.zeros(hidden.shape, device=ids.device).masked_fill(hidden, torch.finfo(torch.float32).min)
    return model.final_layer_norm(model.encoder(x, mask=lowest)[0])


HOST_FAMILIES = (
    HostFamily(
        kind=CLIPTextModel_,
        family="clip",
        embedding="embeddings.token_embedding",
        positions="embeddings.position_embedding",
        forward=_clip,
    ),
    HostFamily(kind=T5, family="t5", embedding="shared", forward=_whole),
    HostFamily(kind=Llama2_, family="llama", embedding="embed_tokens", forward=_llama),
)


class HostTrunk(nn.Module):
    """A text encoder of the host under the contract of a transformers trunk. Its modules are the host's own."""

    def __init__(self, model: nn.Module, row: HostFamily):
        super().__init__()
        self._modules.update(model.named_children())  # the same objects by the same names
        self._host = (model,)  # in a tuple: not registered a second time
        self._forward = row.forward
        tokens: Any = model.get_submodule(row.embedding)
        places: Any = model.get_submodule(row.positions) if row.positions else None
        positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
        self.config = SimpleNamespace(
            hidden_size=tokens.weight.shape[1],
            vocab_size=tokens.weight.shape[0],
            max_position_embeddings=positions if places is None else places.weight.shape[0],
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self._forward(self._host[0], input_ids, attention_mask))


@dataclass(frozen=True)
class HostLanguageModel(LanguageModel):
    """A LanguageModel whose patcher is that of the host's CLIP.

    text_encoder: the core's ``TextEncoder`` over one text encoder of the CLIP.
    """

    text_encoder: Any = None

    @property
    def encoder(self) -> Any:
        return self.text_encoder

    def settle(self, device: torch.device) -> None:
        """The host's classes bring their weights themselves."""

    @classmethod
    def of(cls, clip: comfy.sd.CLIP, which: str = AUTO) -> HostLanguageModel:
        """Raises ValueError, in one sentence, for a CLIP that a bridge cannot listen to."""
        from ..lavi_core.fingerprint import weights_fingerprint
        from ..lavi_core.language import LANGUAGE_FAMILIES, TextEncoder

        path = _choose(clip, which)
        name = path.rpartition(".")[2]
        model, row, prefix = _trunk(clip.cond_stage_model.get_submodule(path), path)
        tokenizer = _tokenizer(clip, name)
        if any(key.startswith(prefix) for key in clip.patcher.backup):
            comfy.model_management.unload_all_models()  # a LoRA lies in the weights, of which a print is to be made
        called = f"{name} of ComfyUI{_quantisation(model)}"
        trunk = HostTrunk(model, row)

        def weights_print() -> tuple[str | None, None]:
            return weights_fingerprint(trunk), None  # the host may keep scales beside its weights

        text_encoder = TextEncoder(trunk, tokenizer, LANGUAGE_FAMILIES[row.family], called, weights_print)
        patcher = clip.patcher.clone()
        patcher.add_callback(CallbacksMP.ON_LOAD, _land)
        return cls(name, patcher, prefix, text_encoder)


def _land(patcher: ModelPatcher, *_: Any) -> None:
    """Patch what the host's partial load leaves out of a model that had been loaded whole before: it takes the modules
    of its text encoders, which cast at every load, for patched already."""
    if getattr(patcher, "is_dynamic", bool)():  # it has other functions, and an absent method is False
        return
    for path, module in patcher.model.named_modules():
        for name, _parameter in module.named_parameters(recurse=False):
            key = f"{path}.{name}"
            if key in patcher.patches and key not in patcher.backup and not getattr(module, f"{name}_function", None):
                patcher.patch_weight_to_device(key)
                module.comfy_patched_weights = True


def _choose(clip: comfy.sd.CLIP, which: str) -> str:
    """The path of one text encoder in the CLIP."""
    modules = clip.cond_stage_model.named_modules()
    found = {path.rpartition(".")[2]: path for path, module in modules if isinstance(module, SDClipModel)}
    names = " and ".join(sorted(found))
    if not found or isinstance(clip.cond_stage_model, BridgeShell):
        kind = type(clip.cond_stage_model).__name__
        raise ValueError(f"this CLIP ({kind}) holds no text encoder of ComfyUI; take it from a CLIP loader")
    if which == AUTO and len(found) > 1:
        raise ValueError(f"this CLIP holds {len(found)} text encoders, {names}: choose the one that the bridge hears")
    if which not in (AUTO, *found):
        raise ValueError(f"this CLIP holds {names}, not {which}: choose that one, or load {which} with a CLIP loader")
    return next(iter(found.values())) if which == AUTO else found[which]


def _trunk(encoder: nn.Module, path: str) -> tuple[nn.Module, HostFamily, str]:
    """The part that turns tokens into hidden states, its row, and the prefix of its weights."""
    for name, module in encoder.named_modules():
        row = next((row for row in HOST_FAMILIES if type(module) is row.kind), None)
        if row is not None:
            return module, row, "".join(f"{part}." for part in (path, name) if part)
    kinds = ", ".join(row.family for row in HOST_FAMILIES)
    raise ValueError(
        f"ComfyUI's {type(encoder.transformer).__name__} is not of a kind that a bridge can hear ({kinds}); load the "
        "Hugging Face folder of this model with Load Language Model"
    )


def family_of(encoder: nn.Module, path: str) -> tuple[str, int]:
    """The core's family, and the width of the states, of one text encoder of the host. Raises ValueError."""
    model, row, _ = _trunk(encoder, path)
    return row.family, HostTrunk(model, row).config.hidden_size


def _tokenizer(clip: comfy.sd.CLIP, name: str) -> Any:
    """The Hugging Face tokenizer of a text encoder, padding as the host pads. transformers before 5 has two of a kind,
    which differ in what they make of punctuation, and of which the host takes the slow one."""
    import transformers

    found = {attribute: t for attribute, t in vars(clip.tokenizer).items() if isinstance(t, SDTokenizer)}
    ours: Any = next((found[at] for at in (name, f"clip_{name}", name.partition("_")[0]) if at in found), None)
    if ours is None and len(found) == 1:
        (ours,) = found.values()
    tokenizer = getattr(ours, "tokenizer", None)
    if not isinstance(tokenizer, transformers.PreTrainedTokenizerBase):
        raise ValueError(
            f"ComfyUI reads prompts for {name} with {type(tokenizer).__name__}, which is no Hugging Face tokenizer; "
            "load the Hugging Face folder of this model with Load Language Model"
        )
    fast = getattr(transformers, f"{type(tokenizer).__name__}Fast", None)
    if fast is not None and not tokenizer.is_fast and Path(tokenizer.name_or_path).is_dir():
        tokenizer = fast.from_pretrained(tokenizer.name_or_path, local_files_only=True)  # what a bridge is trained with
    if ours.pad_token == tokenizer.pad_token_id:
        return tokenizer
    padding = tokenizer.convert_ids_to_tokens(ours.pad_token)
    if padding is None:
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)  # the host's own stays as it is
    tokenizer.pad_token = padding
    return tokenizer


def _quantisation(model: nn.Module) -> str:
    """ " (int8_tensorwise)" where the weights are packed by the host, which may change the signs that a print is of."""
    formats = {getattr(module, "quant_format", None) for module in model.modules()} - {None}
    return f" ({', '.join(sorted(str(one) for one in formats))})" if formats else ""


class LanguageModelFromCLIP(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LaViBridgeLanguageModelFromCLIP",
            display_name="Language Model from CLIP (LaVi-Bridge)",
            description="A text encoder that ComfyUI has loaded already, for a bridge to listen to: same weights, "
            "nothing is loaded twice.",
            search_aliases=["clip", "t5xxl", "fp8", "text encoder", "llm"],
            inputs=[
                io.Clip.Input(
                    "clip",
                    tooltip="From Load CLIP, DualCLIPLoader, a checkpoint loader. fp8 and scaled weights, offloading "
                    "and LoRAs stay as they are.",
                ),
                io.Combo.Input(
                    "encoder",
                    options=list(ENCODERS),
                    default=AUTO,
                    tooltip="Which text encoder of a CLIP that has several, as for SDXL, SD3 or Flux. auto: its only "
                    "one.",
                ),
            ],
            outputs=[
                LanguageModelWire.Output(
                    display_name="language_model", tooltip="For Load Bridge. It shares its weights with the CLIP."
                )
            ],
        )

    @classmethod
    def execute(cls, clip: comfy.sd.CLIP, encoder: str) -> io.NodeOutput:
        return io.NodeOutput(HostLanguageModel.of(clip, encoder))
