"""Z-Image: one stream of picture and text; lists in and out, time runs from noise to data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..conditioning import Conditioning
from .call import NUM_TIMESTEPS, Told
from .keys import DIFFUSERS
from .target import VisionTarget
from .text import TextRule


def predict(network: Any, x: Tensor, timesteps: Tensor, heard: Conditioning, told: Told) -> Tensor:
    """The network takes the data's share as its time and gives data - noise. It pads each text to a multiple of 32 with
    a token of its own, which is attended."""
    texts = list(heard.context)
    if heard.mask is not None:
        lengths = heard.mask.sum(1).tolist()
        texts = [text[:length] for text, length in zip(texts, lengths, strict=True)]
    predicted = network(list(x.unsqueeze(2)), 1 - timesteps / NUM_TIMESTEPS, texts).sample
    return -torch.stack(list(predicted)).squeeze(2)


Z_IMAGE = VisionTarget(
    name="z_image",
    diffusers_class="ZImageTransformer2DModel",
    predict=predict,
    lora_sites=(
        r"(layers|noise_refiner|context_refiner)\.\d+\."
        r"(attention\.(to_q|to_k|to_v|to_out\.0)|feed_forward\.w[123])"
    ),
    keys=DIFFUSERS,
    text=TextRule(masked="left_out", longest=992),
    width_key="cap_feat_dim",
    latent_scale=0.3611,
    latent_shift=0.1159,
    patch=2,
)
