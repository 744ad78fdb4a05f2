"""The folders that LaVi-Bridge's authors released: ``adapter/``, ``lora_text.pt`` and ``lora_vis.pt``.

As written by modules/lora.py and adapters.py of github.com/ShihaoZhaoZSH/LaVi-Bridge. The LoRA files are lists of
half-precision tensors without names, [up, down, up, down, ...] in traversal order, with scale 1 and no alpha.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import adapters
from ..checkpoint import BridgeCheckpoint
from ..config import AdapterConfig, BridgeConfig, LoRAConfig, VisionConfig
from ..language import TextEncoder
from ..lora import Delta, LoRA, shapes
from ..prompt import PromptRecipe
from ..registry import Registry
from ..vision import VISION_TARGETS
from .module_order import LANGUAGE_ORDERS, VISION_ORDERS, in_order
from .pickles import read_pickle

# What the authors' scripts do, by the diffusers class of their vision model.
PROMPTS = Registry(
    "vision model among the authors' released bridges",
    {
        "UNet2DConditionModel": PromptRecipe(max_length=77, language_mask=False, vision_mask=False),
        "PixArtTransformer2DModel": PromptRecipe(max_length=120, language_mask=True, vision_mask=True),
    },
)
# ... and by language family: a padding token other than the tokenizer's own. Llama's has none.
PADS = {"llama": "[PAD]"}

ADAPTER_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin", "diffusion_pytorch_model.pt")
WIDTHS = {"in_width": "norm1.weight", "inner_width": "norm2.weight", "out_width": "ff2.net.2.weight"}


def released_prompt(encoder: TextEncoder, vision: VisionConfig) -> PromptRecipe:
    """How the authors' scripts turn prompts into tokens for these two models.

    The padding side is what the tokenizer's own files say, else the right. Raises ValueError for a vision model that
    none of the scripts has.
    """
    recipe = PROMPTS[VISION_TARGETS[vision.target].diffusers_class]
    tokenizer = encoder.tokenizer
    pad = PADS.get(encoder.family.name)
    if pad is not None and pad not in tokenizer.get_vocab():
        pad = tokenizer.unk_token  # what a token outside the vocabulary becomes
    side = getattr(tokenizer, "init_kwargs", {}).get("padding_side", recipe.padding_side)
    return replace(recipe, pad_token=pad, padding_side=side)


def read_released(
    folder: str | Path,
    encoder: TextEncoder,
    network: nn.Module,
    vision: VisionConfig,
    prompt: PromptRecipe,
    provenance: dict[str, Any],
) -> BridgeCheckpoint:
    """A released folder as a bridge; tensors keep the dtypes of their files.

    encoder, network: the language model and the diffusers vision model that it belongs to; their weights are not read,
    so both may be on the meta device. Raises ValueError, naming the first mismatch and both sides.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    row = VISION_TARGETS[vision.target]
    language_order, vision_order = LANGUAGE_ORDERS[encoder.family.name], VISION_ORDERS[row.diffusers_class]
    adapter_config, adapter = _read_adapter(folder / "adapter")
    config = BridgeConfig(
        language=encoder.config,
        prompt=prompt,
        adapter=adapter_config,
        vision=vision,
        provenance=provenance,
    )
    language = _read_lora(folder / "lora_text.pt", encoder.model, in_order(encoder.lora_sites(), language_order))
    looks = _read_lora(folder / "lora_vis.pt", network, in_order(row.sites(network), vision_order))
    config = replace(config, language_lora=_lora_config(language), vision_lora=_lora_config(looks))
    return BridgeCheckpoint(config, adapter, language, looks)


def _read_adapter(folder: Path) -> tuple[AdapterConfig, dict[str, Tensor]]:
    """Its widths are told by its tensors; a config.json beside them is not needed."""
    file = next((folder / name for name in ADAPTER_FILES if (folder / name).is_file()), None)
    if file is None:
        raise ValueError(f"{folder} holds no adapter: it needs {' or '.join(ADAPTER_FILES[:2])}")
    state = _read_state(file)
    for name in WIDTHS.values():
        if name not in state:
            raise ValueError(f"{file} has no tensor {name}, so it is no adapter of the authors'")
    widths: dict[str, Any] = {width: state[name].shape[0] for width, name in WIDTHS.items()}
    config = AdapterConfig(kind="mlp", **widths)
    with torch.device("meta"):
        wanted = {name: list(tensor.shape) for name, tensor in adapters.build(config).state_dict().items()}
    for name in wanted | state:
        ours, theirs = wanted.get(name, "no such tensor"), list(state[name].shape) if name in state else "absent"
        if ours != theirs:
            raise ValueError(f"{name} of {file} is {theirs}, an adapter of its widths has {ours}")
    return config, state


def _read_state(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if file.suffix != ".safetensors":
        state = read_pickle(file)
        if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
            raise ValueError(f"{file} is not the state dict of an adapter")
        return {str(name): tensor.detach() for name, tensor in state.items()}
    try:
        return load_file(str(file))
    except SafetensorError as error:
        raise ValueError(f"{file} is cut short or damaged ({error}); fetch it again") from None


def _read_lora(file: Path, model: nn.Module, paths: list[str]) -> LoRA:
    """The list in ``file``, each pair by the path of its module of ``model``; every shape is checked."""
    tensors = read_pickle(file)
    if not isinstance(tensors, list) or not tensors or not all(isinstance(t, Tensor) and t.ndim > 1 for t in tensors):
        raise ValueError(f"{file} is not a list of LoRA matrices")
    rank = tensors[0].shape[1]
    wanted = []
    for path in paths:
        down, up = shapes(model.get_submodule(path), rank)
        wanted += [(path, "up", list(up)), (path, "down", list(down))]
    count = f"the file holds {len(tensors)} matrices, {type(model).__name__} of this size takes {len(wanted)}"
    for i, (tensor, (path, half, shape)) in enumerate(zip(tensors, wanted, strict=False)):
        if list(tensor.shape) != shape:
            raise ValueError(f"entry {i} of {file} is {list(tensor.shape)}, {path} needs {shape} ({half}); {count}")
    if len(tensors) < len(wanted):
        path, half, shape = wanted[len(tensors)]
        raise ValueError(f"{file} ends before entry {len(tensors)}, the {half} matrix {shape} of {path}; {count}")
    if len(tensors) > len(wanted):
        raise ValueError(f"entry {len(wanted)} of {file} is {list(tensors[len(wanted)].shape)}, but {count}")
    pairs = zip(paths, tensors[::2], tensors[1::2], strict=True)
    return {path: Delta(down.detach(), up.detach(), 1.0) for path, up, down in pairs}


def _lora_config(lora: LoRA) -> LoRAConfig:
    """The authors scale by 1, which is alpha / rank with an alpha of the rank."""
    rank = next(iter(lora.values())).down.shape[0]
    return LoRAConfig(rank=rank, alpha=float(rank))
