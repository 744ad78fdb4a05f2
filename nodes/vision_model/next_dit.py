"""What Lumina 2 and Z-Image share: the host's NextDiT."""

from __future__ import annotations

import inspect
from typing import Any

from comfy.ldm.lumina.model import NextDiT

from .stock import only_known


def shaped(unet_config: dict[str, Any], inner: int) -> dict[str, Any]:
    """The host's ``unet_config``, with feed-forward layers of width ``inner``.

    The host multiplies, rounds down and then up to a multiple; older hosts multiply four times the width.
    """
    old = inspect.signature(NextDiT).parameters["ffn_dim_multiplier"].default is None
    base = unet_config["dim"] * (4 if old else 1)
    if old and unet_config["rope_theta"] != 10000.0:
        raise ValueError(
            f"this transformer has rope_theta {unet_config['rope_theta']} and this ComfyUI's NextDiT knows 10000 only: "
            "it needs a newer ComfyUI"
        )
    if unet_config["dim"] // unet_config["n_heads"] != sum(unet_config["axes_dims"]):
        raise ValueError(
            f"this transformer has {unet_config['n_heads']} heads in a width of {unet_config['dim']}, and ComfyUI's "
            f"NextDiT divides the width of a head among the axes, {unet_config['axes_dims']}"
        )
    unet_config = unet_config | {"ffn_dim_multiplier": (inner + 0.5) / base, "multiple_of": 1}
    return {"image_model": "lumina2", **only_known(unet_config, NextDiT)}
