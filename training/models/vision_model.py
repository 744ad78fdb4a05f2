"""The vision model: a diffusers U-Net or transformer, with its objective and its latent space."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...lavi_core.conditioning import Conditioning
from ...lavi_core.files import reading
from ...lavi_core.vision import VISION_TARGETS, LatentSpace, Told, VisionTarget, latent_space
from ...lavi_core.vision.text import pooled_error
from .diffusers_folder import check_weights, network_class, network_folder, read_config
from .objective import Objective


@dataclass
class VisionModel:
    """network: the diffusers U-Net or transformer. latents: how raw VAE latents become what it sees."""

    network: nn.Module
    objective: Objective
    latents: LatentSpace
    model_id: str
    target: str

    @property
    def row(self) -> VisionTarget:
        return VISION_TARGETS[self.target]

    @property
    def context_width(self) -> int:
        return self.row.context_width(self.config)

    @property
    def pooled_width(self) -> int | None:
        return self.row.pooled_width(self.config)

    @property
    def scale(self) -> float:
        """What a bridge records of the latent space."""
        return self.latents.factor

    @property
    def latent_channels(self) -> int:
        return self.row.latent_channels(self.config)

    @property
    def config(self) -> dict[str, Any]:
        return dict(self.network.config)  # type: ignore[arg-type]

    def timesteps(self, uniform: Tensor, latents: Tensor) -> Tensor:
        """Uniform numbers in [0, 1] [B] to timesteps [B] for pictures of these latents [B C h w]."""
        return self.objective.timesteps(uniform, self.row.tokens(*latents.shape[-2:]))

    def predict(
        self, x: Tensor, timesteps: Tensor, conditioning: Conditioning, guidance: float | None = None
    ) -> Tensor:
        """One forward: x [B C H W], timesteps [B] -> [B C' H W], C' = 2 C where the network predicts variance too.

        A network that takes sizes is told those of the picture that x stands for, one that embeds guidance ``guidance``
        (None = what its row says). Raises ValueError where it takes a pooled vector and ``conditioning`` has none of
        its width.
        """
        row, config = self.row, self.config
        width = row.pooled_width(config)
        if width is not None and (error := pooled_error(width, conditioning.pooled)) is not None:
            raise error
        size = x.shape[-2] * row.pixels, x.shape[-1] * row.pixels
        told = Told(config=config, size=size, guidance=row.embedded_guidance if guidance is None else guidance)
        return row.predict(self.network, x, timesteps, row.text.hear(conditioning), told)


def load_vision_model(folder: str | Path, target: str | None = None, dtype: torch.dtype = torch.float32) -> VisionModel:
    """From a diffusers pipeline folder: ``unet/`` or ``transformer/`` beside ``scheduler/``; frozen, in eval mode.

    target: a row of ``VISION_TARGETS``; None = the one that config.json tells. Raises ValueError where the two differ.
    """
    folder = Path(folder)
    part = network_folder(folder)
    config, row = read_config(folder)
    if target is not None:
        if not VISION_TARGETS[target].is_of(config):
            raise ValueError(
                f"{part} is of the vision target {row.name} (class {config['_class_name']}, context width "
                f"{row.context_width(config)}), {target!r} was asked for: leave the target out, or take another model"
            )
        row = VISION_TARGETS[target]
    latents = latent_space(part, row)
    check_weights(part)
    with reading(part):
        network = network_class(row).from_pretrained(part, torch_dtype=dtype, use_safetensors=True)
    network.requires_grad_(False).eval()
    return VisionModel(
        network=network,
        objective=Objective.load(folder / "scheduler", row),
        latents=latents,
        model_id=config.get("model_id", folder.name),
        target=row.name,
    )
