"""The device that a command computes on: cuda, mps or cpu."""

from __future__ import annotations

from typing import Literal

import torch


def fastest_precision(device: torch.device) -> Literal["bf16", "fp32"]:
    """bf16 where the device computes in it faster than in float32: GPUs that have it, CPUs with AMX."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and torch.cpu._is_amx_tile_supported() else "fp32"


def emulates_bf16(device: torch.device) -> bool:
    """Whether it has no instructions for bf16: a convolution then takes tens of times as long as in float32."""
    return device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def pick_device(name: str | torch.device | None = None) -> torch.device:
    """The device asked for, or the best one here. Raises ValueError for one that is not here."""
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kinds = [kind for kind, found in here.items() if found]
    try:
        device = torch.device(name or kinds[0])
    except RuntimeError:
        device = None
    if device is None or device.type not in kinds:
        raise ValueError(f"there is no device {name} here; known: {', '.join(kinds)}")
    return device
