"""Latent formats: what stands between a VAE's latents and what a model sees, and the colours of its previews."""

from __future__ import annotations

from typing import Any

import comfy.latent_formats
import torch


class Latents(comfy.latent_formats.SD15):
    """Latents of any width and scale; only four channels are worth the preview colours of SD 1.x."""

    def __init__(self, channels: int, scale: float):
        super().__init__(scale)
        self.latent_channels = channels
        if channels != 4:
            self.latent_rgb_factors = self.taesd_decoder_name = None


def latent_format(channels: int, scale: float) -> comfy.latent_formats.LatentFormat:
    """SDXL's own format, with its preview colours, for latents of SDXL's scale; else one of this width and scale."""
    sdxl = comfy.latent_formats.SDXL()
    return sdxl if channels == 4 and abs(scale - sdxl.scale_factor) < 1e-6 else Latents(channels, scale)


def fit(host_format: Any, space: Any, channels: int | None = None) -> None:
    """Put the numbers of a LatentSpace into the host's format of a model where they are others, and so many channels.

    Raises ValueError where the format has no place for them.
    """
    if channels is not None and channels != host_format.latent_channels:
        host_format.latent_channels = channels
        host_format.latent_rgb_factors = host_format.taesd_decoder_name = None
    if _same(host_format, space):
        return
    if hasattr(host_format, "latents_mean"):  # one number a channel
        host_format.latents_mean = _each(space.shift, host_format.latent_channels)
        host_format.latents_std = 1 / _each(space.scale, host_format.latent_channels)
    else:
        host_format.scale_factor, host_format.shift_factor = space.scale, space.shift
    if not _same(host_format, space):
        raise ValueError(
            f"this model sees its VAE's latents less {space.shift} and times {space.scale}, and ComfyUI's "
            f"{type(host_format).__name__} latents of {host_format.latent_channels} channels have no place for that"
        )


def _each(numbers: float | tuple[float, ...], channels: int) -> torch.Tensor:
    numbers = numbers if isinstance(numbers, tuple) else (numbers,) * channels
    return torch.tensor(numbers).view(1, -1, 1, 1, 1)


def _same(host_format: Any, space: Any) -> bool:
    """As tried on numbers."""
    count = host_format.latent_channels
    for numbers in (space.scale, space.shift):
        if isinstance(numbers, tuple) and (len(numbers) != count or not hasattr(host_format, "latents_mean")):
            return False
    raw = torch.linspace(-3, 3, 2 * count).view(2, count, 1, 1)
    host = host_format.process_in(raw if host_format.latent_dimensions == 2 else raw.unsqueeze(2))
    return torch.allclose(host.flatten(), space.seen(raw).flatten(), rtol=1e-5, atol=1e-6)
