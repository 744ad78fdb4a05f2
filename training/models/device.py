"""The device that a command computes on: cuda, mps or cpu."""

from __future__ import annotations

import torch


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
