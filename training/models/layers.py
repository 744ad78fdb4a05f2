"""Layers of both models: those that no recipe needs are dropped; gradient checkpointing; the outermost lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...lavi_core.language import TextEncoder
from ...lavi_core.language.hidden_states import depth
from ...lavi_core.prompt import WhichStates
from .lora_layers import LoRALayer


def used_sites(encoder: TextEncoder, hidden_states: WhichStates) -> list[str]:
    """The LoRA sites of the layers that the recipe runs: one after an early stop would never see a gradient."""
    unused = {id(module) for module in unused_modules(encoder, hidden_states)}
    return [path for path in encoder.lora_sites() if id(encoder.model.get_submodule(path)) not in unused]


def unused_modules(encoder: TextEncoder, hidden_states: WhichStates) -> list[nn.Module]:
    """The modules of the layers after the last one that the recipe runs, less those that an earlier layer shares."""
    layers = encoder.layers()
    run = depth(hidden_states, len(layers))
    used = {id(module) for layer in layers[:run] for module in layer.modules()}
    return [module for layer in layers[run:] for module in layer.modules() if id(module) not in used]


def drop_layers(encoder: TextEncoder, unused: list[nn.Module]) -> None:
    """Free the weights of the layers after the last that the recipe runs: the pass is left at the first of them.

    The layers themselves stay: models ask them for the kind of their attention before any is run (ModernBERT, BigBird).
    """
    gone = set(map(id, unused))
    for layer in encoder.layers():
        if all(id(module) in gone for module in layer.modules()):
            drop_tensors(layer)


def drop_tensors(model: nn.Module) -> None:
    """Free weights and buffers; the modules stay, with None in their places."""
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            tensors.update(dict.fromkeys(tensors))


def checkpoint_layers(encoder: TextEncoder, network: nn.Module, unused: list[nn.Module]) -> set[nn.Module]:
    """Have both models' layers run again in the backward pass instead of kept. Not reentrant: that would lose the
    gradients of LoRA behind a frozen input.

    Returns the modules that transformers wants in training mode for it: the layers and what holds them, not their
    parts, which drop out. The layers that are not used are none of them: the pass is left at the first. Raises
    ValueError for a model that cannot do it.
    """
    language, vision = cast(Any, encoder.model), cast(Any, network)
    enable = getattr(language, "activation_checkpointing_enable", None) or language.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    vision.enable_gradient_checkpointing()
    layers = encoder.layers()
    holders = (module for module in encoder.model.modules() if layers in module.children())
    return {*holders, *(layer for layer in layers if layer not in unused)}


def channels_last(model: nn.Module) -> None:
    """Lay the frozen convolutions' weights out as [out h w in], in which CPUs and GPUs compute them without transposing
    their pictures; what they give lies so too."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and not module.weight.requires_grad:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        elif isinstance(module, nn.GroupNorm):
            module.forward = partial(_as_it_lay, module.forward)


def _as_it_lay(group_norm: Callable[[Tensor], Tensor], input: Tensor) -> Tensor:
    """torch's group norm of 16-bit numbers that lie channels last takes a CPU up to thirty times as long where a
    picture has few cells, or a group few channels (torch 2.13); to copy them there and back costs less."""
    if input.is_cpu and input.ndim == 4 and input.dtype.itemsize < 4 and not input.is_contiguous():
        return group_norm(input.contiguous()).contiguous(memory_format=torch.channels_last)
    return group_norm(input)


def outermost_layers(model: nn.Module) -> Iterator[nn.Module]:
    """The entries of the outermost lists of modules: a U-Net's blocks, a transformer's layers."""
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from outermost_layers(child)


def alike_layers(model: nn.Module) -> list[nn.Module]:
    """The outermost entries of lists of modules that have a twin: the same class, the same shapes of weights. What has
    none is looked into. Compiled one by one, twins share what was compiled.
    """
    found: list[nn.Module] = []
    left = [model]
    while left:
        layers = [layer for part in left for layer in outermost_layers(part)]
        kinds = Counter(map(_kind, layers))
        found += [layer for layer in layers if kinds[_kind(layer)] > 1]
        left = [layer for layer in layers if kinds[_kind(layer)] == 1]
    return [layer for layer in found if any(True for _ in layer.parameters()) and not isinstance(layer, LoRALayer)]


def _kind(layer: nn.Module) -> tuple[Any, ...]:
    return type(layer), tuple((name, p.shape, p.requires_grad) for name, p in layer.named_parameters())
