"""A bridge, a vision model and a VAE put together, without ComfyUI."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ..lavi_core import fingerprint, lora
from ..lavi_core.bridge import Bridge
from ..lavi_core.checkpoint import BridgeCheckpoint
from ..lavi_core.conditioning import Conditioning
from ..lavi_core.language import TextEncoder
from .sampling import noise_for, sample
from .vision_model import VisionModel, decode, load_vae, load_vision_model

BATCH = 32
VAE_FACTOR = 8  # pixels to a latent cell, in every VAE of the supported vision models


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


@dataclass
class Pipeline:
    """condition: prompts -> Conditioning, on the vision model's device. precision: "bf16" computes under autocast."""

    condition: Callable[[list[str]], Conditioning]
    vision: VisionModel
    vae: Any
    precision: Literal["bf16", "fp32"] = "fp32"

    @classmethod
    def load(
        cls,
        bridge: str | Path,
        language: str | Path | TextEncoder,
        vision: str | Path,
        vae: str | Path,
        precision: Literal["bf16", "fp32"] = "fp32",
        device: str | torch.device | None = None,
    ) -> Pipeline:
        """From local files, weights in float32. device: of all parts; None = the best one here.

        Raises ValueError where a model is not the one that the bridge was made for.
        """
        device = pick_device(device)
        checkpoint = BridgeCheckpoint.load(bridge)
        wanted = checkpoint.config.vision
        model = load_vision_model(vision, wanted.target)
        if model.context_width != wanted.context_width:
            raise ValueError(
                f"{bridge} was made for {wanted.model_id} (context width {wanted.context_width}), the vision model "
                f"{vision} has context width {model.context_width}: load {wanted.model_id}"
            )
        if wanted.fingerprint not in (None, fingerprint.weights_print(model.network)):
            raise ValueError(f"{bridge} was made for {wanted.model_id}, {vision} has other weights: load the former")
        encoder = language if isinstance(language, TextEncoder) else TextEncoder.load(language, dtype=torch.float32)
        connected = Bridge.connect(checkpoint, encoder).to(device)
        lora.merge(model.network, checkpoint.vision_lora)
        model.network.to(device)

        def condition(prompts: list[str]) -> Conditioning:
            with torch.no_grad():
                return connected(prompts)

        decoder: Any = load_vae(vae)
        return cls(condition, model, decoder.to(device), precision)

    def draw(
        self,
        prompts: Sequence[str],
        *,
        negative: str = "",
        seed: int = 0,
        steps: int = 20,
        guidance: float = 3.0,
        size: int = 128,
        progress: Callable[[], object] | None = None,
    ) -> np.ndarray:
        """One picture a prompt, uint8 [B size size 3]. Picture i has the i-th noise of the seed's stream."""
        side = size // VAE_FACTOR
        device = next(self.vision.network.parameters()).device
        noise = noise_for(seed, (len(prompts), self.vision.latent_channels, side, side)).to(device)
        images = []
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            unheard = self.condition([negative])
            for i in range(0, len(prompts), BATCH):
                heard = self.condition(list(prompts[i : i + BATCH]))
                latents = sample(self.vision, heard, unheard, noise[i : i + BATCH], steps, guidance, progress)
                images.append(decode(self.vae, latents.float()).cpu().numpy())
        return np.concatenate(images)
