"""What a diffusers network is called with, and helpers that several rows call theirs with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..conditioning import Conditioning

Size = tuple[int, int]  # height and width of the picture in pixels
NUM_TIMESTEPS = 1000  # of a flow: timestep = 1000 * noise share


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a network hears beside its context. config: its config.json. size: of the picture in pixels. guidance: what
    a guidance-distilled network embeds, where it does; of no meaning elsewhere."""

    config: Mapping[str, Any]
    size: Size
    guidance: float = 1.0


# (network, x [B C h w], timesteps [B], context as the row's TextRule gives it, told) -> prediction [B C' h w], of noise
# for epsilon, of noise - data for a flow, whose timesteps are 1000 times the share of noise.
Predict = Callable[[nn.Module, Tensor, Tensor, Conditioning, Told], Tensor]


def pack(x: Tensor) -> Tensor:
    """2 x 2 cells to a token, in the order (channel, row, column). [B C h w] -> [B h/2 * w/2 4C]"""
    return patchify(x).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, h: int, w: int) -> Tensor:
    """The inverse for a picture of h x w cells. [B h/2 * w/2 4C] -> [B C h w]"""
    return unpatchify(tokens.transpose(1, 2).unflatten(2, (h // 2, w // 2)))


def patchify(x: Tensor) -> Tensor:
    """[B C h w] -> [B 4C h/2 w/2], channels in the order (channel, row, column)."""
    return torch.nn.functional.pixel_unshuffle(x, 2)


def unpatchify(x: Tensor) -> Tensor:
    """[B 4C h/2 w/2] -> [B C h w]"""
    return torch.nn.functional.pixel_shuffle(x, 2)


def grid_ids(h: int, w: int, device: torch.device) -> Tensor:
    """(0, row, column) of each token of a picture of h x w tokens. -> [h * w 3] float32"""
    ids = torch.zeros(h, w, 3, device=device)
    ids[..., 1] += torch.arange(h, device=device)[:, None]
    ids[..., 2] += torch.arange(w, device=device)[None]
    return ids.flatten(0, 1)


def real(heard: Conditioning) -> Tensor:
    """The mask of a network that asks for one; all tokens where there is none. [B T] bool"""
    if heard.mask is not None:
        return heard.mask
    return torch.ones(heard.context.shape[:2], dtype=torch.bool, device=heard.context.device)
