"""The latent space of a vision model: what stands between its VAE's latents and what its network sees."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .target import VisionTarget

# What diffusers takes for a VAE whose config was saved before it had the key, as Stable Diffusion 1's were.
UNSAID = {"AutoencoderKL": 0.18215}
VAES = ("vae", "vqvae")  # a pipeline's folder of its VAE: diffusers' name, and that of latent diffusion

Numbers = float | tuple[float, ...]  # one, or one a channel


@dataclass(frozen=True)
class LatentSpace:
    """The network sees (raw - shift) * scale."""

    scale: Numbers = 1.0
    shift: Numbers = 0.0

    def seen(self, raw: Tensor) -> Tensor:
        """[B C h w] as the VAE gives them -> as the network sees them."""
        return (raw - _like(self.shift, raw)) * _like(self.scale, raw)

    def raw(self, seen: Tensor) -> Tensor:
        """The inverse."""
        return seen / _like(self.scale, seen) + _like(self.shift, seen)

    @property
    def factor(self) -> float:
        """The one number that a bridge records: the scale, and 1 where each channel has its own."""
        return self.scale if isinstance(self.scale, float) else 1.0


def latent_space(folder: str | Path, row: VisionTarget) -> LatentSpace:
    """Of the diffusers network in ``folder`` (``unet/``, ``transformer/``).

    "latent_scale" in its config.json (ours); else what its pipeline's VAE says: "scaling_factor" and "shift_factor", or
    "latents_mean" and "latents_std"; else the row's. Raises ValueError where none of them says.
    """
    folder = Path(folder)
    vae = next(filter(None, (_read(folder.parent / name / "config.json") for name in VAES)), {})
    own = _read(folder / "config.json").get("latent_scale")
    if own is not None:
        return LatentSpace(float(own))
    if vae.get("latents_mean") and vae.get("latents_std") and "scaling_factor" not in vae:
        return LatentSpace(tuple(1 / std for std in vae["latents_std"]), tuple(map(float, vae["latents_mean"])))
    said = vae.get("scaling_factor", UNSAID.get(vae.get("_class_name", "")))
    if said is not None and not isinstance(row.latent_scale, tuple):
        return LatentSpace(float(said), float(vae.get("shift_factor") or 0.0))
    if row.latent_scale is None:
        raise ValueError(
            f'{folder} does not say the scale of its latents: add "latent_scale" to its config.json, or put the '
            f'config.json of its VAE, with "scaling_factor", into {folder.parent / "vae"}'
        )
    return LatentSpace(row.latent_scale, row.latent_shift)


def latent_scale(folder: str | Path, row: VisionTarget) -> float:
    """The one number of ``latent_space``."""
    return latent_space(folder, row).factor


def _like(numbers: Numbers, latents: Tensor) -> Tensor | float:
    if not isinstance(numbers, tuple):
        return numbers
    return torch.tensor(numbers, dtype=torch.float32).to(latents.device, non_blocking=True).view(1, -1, 1, 1)


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path} is not readable as JSON ({error})") from None
