"""Plain PyTorch modules under the host's memory management.

The host loads a model in part only where its modules cast their own weights; of other modules it forgets, without a
word, the weights and the LoRA that do not fit. So leaf modules take the host's casting classes, and the few that have
none (the RMSNorms of Hugging Face, say) are moved and patched whole when the model is loaded.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import comfy.model_management
import comfy.ops
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP
from torch import nn

from .quantized_patcher import QuantizedPatcher, casts_blocks

CASTING = {
    nn.Linear: comfy.ops.manual_cast.Linear,
    nn.Embedding: comfy.ops.manual_cast.Embedding,
    nn.LayerNorm: comfy.ops.manual_cast.LayerNorm,
    nn.GroupNorm: comfy.ops.manual_cast.GroupNorm,
    nn.Conv1d: comfy.ops.manual_cast.Conv1d,
    nn.Conv2d: comfy.ops.manual_cast.Conv2d,
}


def managed(model: nn.Module, load_device: torch.device, offload_device: torch.device) -> ModelPatcher:
    """A patcher over ``model``, whose leaf modules are changed in place to the host's casting classes."""
    from ..lavi_core.quantized.modules import quantized
    from ..lavi_core.quantized.unpacking import Unpacking

    blocks: list[nn.Module] = [module for _, module in quantized(model)]
    blocks += [module for module in model.modules() if isinstance(module, Unpacking)]
    for module in blocks:
        casts_blocks(module)
    for module in model.modules():
        casting = _casting(type(module))
        if casting is not None:
            module.__class__ = casting
            if isinstance(module, nn.Embedding):
                module.bias = None  # the host's classes ask for it
    archive = getattr(comfy.model_management, "archive_model_dtypes", None)
    if archive is not None:
        archive(model)
    kind = QuantizedPatcher if blocks else ModelPatcher
    patcher = kind(model.to(offload_device), load_device, offload_device)
    patcher.add_callback(CallbacksMP.ON_LOAD, _on_load)
    return patcher


@cache
def _casting(kind: type) -> type | None:
    """The casting class of a leaf class. Embeddings that only scale what ``nn.Embedding`` gives (Gemma) count too."""
    if kind in CASTING:
        return CASTING[kind]
    if issubclass(kind, nn.Embedding) and not hasattr(kind, "comfy_cast_weights"):
        return type(kind.__name__, (kind, CASTING[nn.Embedding]), {})
    return None


def _on_load(patcher: ModelPatcher, device: torch.device, *_: Any) -> None:
    """Patch the plain modules that the host's loading left out of its budget."""
    for path, module in _plain(patcher.model):
        if not getattr(module, "comfy_patched_weights", False):
            for name, _ in module.named_parameters(recurse=False):
                key = f"{path}.{name}" if path else name
                if key in patcher.patches and key not in patcher.backup:
                    patcher.patch_weight_to_device(key, device_to=device)
                    module.comfy_patched_weights = True
    if isinstance(patcher, QuantizedPatcher):
        patcher.put()
    settle(patcher.model, device)


def settle(model: nn.Module, device: torch.device) -> None:
    """Bring weights and buffers of plain modules, small as they are, to ``device``; the others come when used."""
    for _, module in _plain(model):
        for parameter in module.parameters(recurse=False):
            if parameter.device != device:
                parameter.data = parameter.data.to(device)
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.device != device:
                setattr(module, name, buffer.to(device))


def _plain(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(path, module) for path, module in model.named_modules() if not hasattr(module, "comfy_cast_weights")]
