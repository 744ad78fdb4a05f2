"""How attention is computed in training: on a CPU torch's fused kernel is the slower way for small pictures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

FEW_CELLS = 256


@contextmanager
def attention_kernel(network: nn.Module, device: torch.device, cells: int) -> Iterator[None]:
    """On a CPU plain matrix products train faster than torch's flash kernel, whose backward is slow there, as long as a
    picture has few latent cells. A U-Net's are diffusers' own: torch's scale query and key each by itself, look for
    rows of nothing but -inf, and compute 16-bit attention in float32 (torch 2.13).
    """
    if device.type != "cpu" or cells > FEW_CELLS:
        yield
        return
    from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
    from torch.nn.attention import SDPBackend, sdpa_kernel

    plain = AttnProcessor()
    usual = {
        module: module.processor
        for module in network.modules()
        if isinstance(module, Attention) and type(module.processor) is AttnProcessor2_0
    }
    try:
        for module in usual:
            module.processor = plain
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for module, processor in usual.items():
            module.processor = processor
