"""Latent formats: the scale of a model's latents, and the colours of its previews."""

from __future__ import annotations

import comfy.latent_formats


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
