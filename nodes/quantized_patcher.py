"""A ModelPatcher for quantised weights: moved as the bytes they are, LoRA added when they are used."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import comfy.lora
import comfy.ops
import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn


class CastsBlocks(comfy.ops.CastWeightBiasOp):
    """Put before a kind of the core's ``Quantized``: what is dequantised, on the device of the input, takes the host's
    patches (``weight_function``); the bytes are never written."""

    def dense(self: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
        if not self.weight_function:
            return super().dense(dtype, device)  # pyright: ignore
        return _through(self.weight_function, super().dense(torch.float32, device)).to(dtype)  # pyright: ignore

    def shift(self: Any, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        bias = super().shift(dtype, device)  # pyright: ignore
        return _through(self.bias_function, bias) if self.bias_function else bias

    def look_up(self: Any, ids: Tensor) -> Tensor:
        if not self.weight_function:
            return super().look_up(ids)  # pyright: ignore
        return F.embedding(ids, self.dense(self.stand_in.dtype, ids.device))

    def take(self: Any, _: str, functions: list[Any]) -> None:
        self.weight_function = functions


class PatchesUnpacked:
    """Put before a kind of the core's ``Unpacking``: each weight that is made dense while the module runs takes the
    host's patches. The module is moved whole, as plain ones are."""

    def dense(self: Any, name: str) -> Tensor:
        weight, functions = super().dense(name), self.weight_functions.get(name)  # pyright: ignore
        return _through(functions, weight.float()).to(weight.dtype) if functions else weight

    def take(self: Any, name: str, functions: list[Any]) -> None:
        self.weight_functions[name] = functions


def casts_blocks(module: nn.Module) -> None:
    """Change a module of the core's ``Quantized`` or ``Unpacking``, in place, to one that takes the host's patches."""
    kind = type(module)
    if hasattr(module, "formats"):
        module.__class__ = type(kind.__name__, (PatchesUnpacked, kind), {})
        module.weight_functions = {}
        return
    module.__class__ = type(kind.__name__, (CastsBlocks, kind), {})
    module.weight_function, module.bias_function = [], []
    if isinstance(module, nn.Embedding):
        module.bias = None  # the host asks for it


class QuantizedPatcher(ModelPatcher):
    """A patcher of a model with quantised weights. LoRA on these, by node or by hook, is a function that is called when
    one is dequantised: it is there whether the weight is on the device or not, and unpatching leaves nothing behind."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.hooked: dict[str, list[Any]] = {}

    def quantised(self) -> Iterator[tuple[str, tuple[Any, str]]]:
        """The host's key of each quantised weight; its module, and its name there."""
        for path, module in self.model.named_modules():
            if isinstance(module, CastsBlocks):
                yield f"{path}.weight", (module, "weight")
            elif isinstance(module, PatchesUnpacked):
                yield from ((f"{path}.{name}", (module, name)) for name in module.formats)  # pyright: ignore

    def put(self) -> None:
        """Each quantised module has the functions that this patcher has patches for, and no others."""
        for key, (module, name) in self.quantised():
            patches = [partial(_patched, of[key], key) for of in (self.patches, self.hooked) if key in of]
            module.take(name, [*patches, *self.weight_wrapper_patches.get(key, [])])

    def patch_weight_to_device(self, key: str, *args: Any, **kwargs: Any) -> Any:
        if key in self.patches and key in dict(self.quantised()):
            return None
        return super().patch_weight_to_device(key, *args, **kwargs)

    def partially_unload(self, *args: Any, **kwargs: Any) -> Any:
        freed = super().partially_unload(*args, **kwargs)
        self.put()  # the host has added its own function to those that it moved
        return freed

    def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True) -> None:
        super().unpatch_model(device_to, unpatch_weights)
        if unpatch_weights:
            for _, (module, name) in self.quantised():
                module.take(name, [])

    def patch_hooks(self, hooks: Any) -> None:
        self.cached_hook_patches.pop(hooks, None)  # it has whole weights, which are not kept of quantised ones
        super().patch_hooks(hooks)

    def patch_hook_weight_to_device(
        self, hooks: Any, combined_patches: Any, key: str, *args: Any, **kwargs: Any
    ) -> None:
        if key not in dict(self.quantised()):
            super().patch_hook_weight_to_device(hooks, combined_patches, key, *args, **kwargs)
        elif key in combined_patches:
            self.hooked[key] = combined_patches[key]
            self.put()

    def unpatch_hooks(self, *args: Any, **kwargs: Any) -> None:
        super().unpatch_hooks(*args, **kwargs)
        if self.hooked:
            self.hooked = {}
            self.put()


def _patched(patches: list[Any], key: str, weight: Tensor) -> Tensor:
    return comfy.lora.calculate_weight(patches, weight, key, intermediate_dtype=weight.dtype)


def _through(functions: list[Any], weight: Tensor) -> Tensor:
    for function in functions:
        weight = function(weight)
    return weight
