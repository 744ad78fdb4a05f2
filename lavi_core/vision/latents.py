"""The latent scale of a vision model: the factor between its VAE's latents and what its network sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .target import VisionTarget

# What diffusers takes for a VAE whose config was saved before it had the key, as Stable Diffusion 1's were.
UNSAID = {"AutoencoderKL": 0.18215}
VAES = ("vae", "vqvae")  # a pipeline's folder of its VAE: diffusers' name, and that of latent diffusion


def latent_scale(folder: str | Path, row: VisionTarget) -> float:
    """What raw VAE latents are multiplied by, for the diffusers network in ``folder`` (``unet/``, ``transformer/``).

    "latent_scale" in its config.json (ours); else its pipeline's VAE's "scaling_factor"; else the row's. Raises
    ValueError where none of them says.
    """
    folder = Path(folder)
    vae = next(filter(None, (_read(folder.parent / name / "config.json") for name in VAES)), {})
    known = (
        _read(folder / "config.json").get("latent_scale"),
        vae.get("scaling_factor", UNSAID.get(vae.get("_class_name", ""))),
        row.latent_scale,
    )
    scale = next((value for value in known if value is not None), None)
    if scale is None:
        raise ValueError(
            f'{folder} does not say the scale of its latents: add "latent_scale" to its config.json, or put the '
            f'config.json of its VAE, with "scaling_factor", into {folder.parent / "vae"}'
        )
    return float(scale)


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path} is not readable as JSON ({error})") from None
