"""The ``added_cond_kwargs`` of a diffusers U-Net's and of PixArt's forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..conditioning import Conditioning
from .call import Told

Added = dict[str, Tensor | None]


def nothing(heard: Conditioning, told: Told) -> Added:
    return {}


def pooled_and_sizes(heard: Conditioning, told: Told) -> Added:
    """SDXL's (arXiv 2307.01952, 2.2): text_embeds [B P] and time_ids [B 6], the original size, the top left corner of
    the crop and the target size, for a picture that was neither scaled nor cropped.
    """
    return {"text_embeds": heard.pooled, "time_ids": _rows((*told.size, 0, 0, *told.size), heard)}


def micro_conditions(heard: Conditioning, told: Told) -> Added:
    """PixArt-alpha's (arXiv 2310.00426, 2.4): resolution [B 2] and aspect_ratio [B 1]; None for both in the checkpoints
    of 256 and 512 pixels, which do not embed them.
    """
    embeds = told.config.get("use_additional_conditions")
    if embeds is None:  # diffusers' own rule for a config that does not say
        embeds = told.config["sample_size"] == 128
    if not embeds:
        return {"resolution": None, "aspect_ratio": None}
    return {"resolution": _rows(told.size, heard), "aspect_ratio": _rows((told.size[0] / told.size[1],), heard)}


def plainly(added: Any) -> Any:
    """The call of a U-Net and of PixArt, which takes all by these names."""

    def predict(network: nn.Module, x: Tensor, timesteps: Tensor, heard: Conditioning, told: Told) -> Tensor:
        return network(
            x,
            timestep=timesteps,
            encoder_hidden_states=heard.context,
            encoder_attention_mask=heard.mask,
            added_cond_kwargs=added(heard, told),
            return_dict=True,
        ).sample

    return predict


def _rows(values: tuple[float, ...], heard: Conditioning) -> Tensor:
    """The same numbers for every prompt. [B n] float32"""
    row = torch.tensor(values, dtype=torch.float32).to(heard.context.device, non_blocking=True)
    return row.expand(len(heard.context), -1)
