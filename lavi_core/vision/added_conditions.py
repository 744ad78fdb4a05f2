"""What a diffusers network takes beside its context: the ``added_cond_kwargs`` of its forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..conditioning import Conditioning

Added = dict[str, Tensor | None]
Size = tuple[int, int]  # height and width of the picture in pixels


def nothing(config: Mapping[str, Any], conditioning: Conditioning, size: Size) -> Added:
    return {}


def pooled_and_sizes(config: Mapping[str, Any], conditioning: Conditioning, size: Size) -> Added:
    """SDXL's (arXiv 2307.01952, 2.2): text_embeds [B P] and time_ids [B 6], the original size, the top left corner of
    the crop and the target size, for a picture that was neither scaled nor cropped.

    Raises ValueError where ``conditioning`` has no pooled vector of the network's width.
    """
    width = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    if conditioning.pooled is None or conditioning.pooled.shape[-1] != width:
        given = "none" if conditioning.pooled is None else f"one of width {conditioning.pooled.shape[-1]}"
        raise ValueError(
            f"the vision model takes a pooled vector of width {width}, the bridge gives {given}: use a bridge that was "
            "trained with this vision model"
        )
    return {"text_embeds": conditioning.pooled, "time_ids": _rows((*size, 0, 0, *size), conditioning)}


def micro_conditions(config: Mapping[str, Any], conditioning: Conditioning, size: Size) -> Added:
    """PixArt-alpha's (arXiv 2310.00426, 2.4): resolution [B 2] and aspect_ratio [B 1]; None for both in the checkpoints
    of 256 and 512 pixels, which do not embed them.
    """
    embeds = config.get("use_additional_conditions")
    if embeds is None:  # diffusers' own rule for a config that does not say
        embeds = config["sample_size"] == 128
    if not embeds:
        return {"resolution": None, "aspect_ratio": None}
    return {"resolution": _rows(size, conditioning), "aspect_ratio": _rows((size[0] / size[1],), conditioning)}


def _rows(values: tuple[float, ...], conditioning: Conditioning) -> Tensor:
    """The same numbers for every prompt. [B n] float32"""
    row = torch.tensor(values, dtype=torch.float32, device=conditioning.context.device)
    return row.expand(len(conditioning.context), -1)
