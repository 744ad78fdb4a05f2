"""The vision model: a diffusers U-Net or transformer, with its objective and the scale of its latents."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...lavi_core.conditioning import Conditioning
from ...lavi_core.files import reading
from ...lavi_core.vision import VISION_TARGETS, VisionTarget, latent_scale
from .diffusers_folder import check_weights, network_folder, read_config
from .objective import Objective
from .vae import VAE_FACTOR


@dataclass
class VisionModel:
    """network: the diffusers U-Net or transformer. scale: raw VAE latents times this are what the network sees."""

    network: nn.Module
    objective: Objective
    scale: float
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
    def latent_channels(self) -> int:
        return self.config["in_channels"]

    @property
    def config(self) -> dict[str, Any]:
        return dict(self.network.config)  # type: ignore[arg-type]

    def predict(self, x: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """One forward: x [B C H W], timesteps [B] -> [B C' H W], C' = 2 C where the network predicts variance too.

        A network that takes sizes is told those of the picture that x stands for. Raises ValueError where it takes a
        pooled vector and ``conditioning`` has none.
        """
        size = x.shape[-2] * VAE_FACTOR, x.shape[-1] * VAE_FACTOR
        return self.network(
            x,
            timestep=timesteps,
            encoder_hidden_states=conditioning.context,
            encoder_attention_mask=conditioning.mask,
            added_cond_kwargs=self.row.added(self.config, conditioning, size),
            return_dict=True,
        ).sample


def load_vision_model(folder: str | Path, target: str | None = None, dtype: torch.dtype = torch.float32) -> VisionModel:
    """From a diffusers pipeline folder: ``unet/`` or ``transformer/`` beside ``scheduler/``; frozen, in eval mode.

    target: a row of ``VISION_TARGETS``; None = the one that config.json tells. Raises ValueError where the two differ.
    """
    import diffusers

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
    scale = latent_scale(part, row)
    check_weights(part)
    with reading(part):
        network = getattr(diffusers, row.diffusers_class).from_pretrained(part, torch_dtype=dtype, use_safetensors=True)
    network.requires_grad_(False).eval()
    return VisionModel(
        network=network,
        objective=Objective.load(folder / "scheduler"),
        scale=scale,
        model_id=config.get("model_id", folder.name),
        target=row.name,
    )
