"""VAEs from local files: pictures -> latents, latents -> pictures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from torch import Tensor

from ...lavi_core.files import read_safetensors, reading
from ...lavi_core.vision.call import patchify, unpatchify
from .diffusers_folder import check_weights

PIXELS = 2**20  # that go through a VAE at a time, which bounds its memory to a few GB
TAESD_KEY = re.compile(r"(?:taesd_)?(encoder|decoder)\.(\d+)\.(.+)")


def own_vae(folder: str | Path) -> Path:
    """The VAE's folder in a pipeline's. Raises ValueError where there is none."""
    found = [Path(folder) / name for name in ("vae", "vqvae") if (Path(folder) / name / "config.json").is_file()]
    if not Path(folder).is_dir():
        raise ValueError(f"there is no folder of a vision model {folder}")
    if not found:
        raise ValueError(f"{folder} has no vae/ or vqvae/ with a config.json: name the VAE that belongs to it")
    return found[0]


def vae_batch_size(size: int, most: int = 32) -> int:
    """How many pictures of ``size`` pixels go through a VAE at a time."""
    return min(most, max(1, PIXELS // size**2))


def load_vae(path: str | Path, dtype: torch.dtype = torch.float32):
    """A diffusers VAE folder, or a TAESD file in ComfyUI's key names; frozen, in eval mode."""
    import diffusers

    path = Path(path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"{path} has no config.json, so it is not a VAE's folder (vae/ or vqvae/ of a pipeline)")
        name = json.loads((path / "config.json").read_text())["_class_name"]
        check_weights(path)
        with reading(path):
            vae = getattr(diffusers, name).from_pretrained(path, torch_dtype=dtype, use_safetensors=True)
    elif path.is_file():
        other = f"{path} is no TAESD file{{}}; give a VAE of another kind as its folder in diffusers' layout"
        state = {}
        for key, weight in read_safetensors(path).items():
            found = TAESD_KEY.fullmatch(key)
            if found is None:
                raise ValueError(other.format(f" (it holds {key})"))
            part, index, rest = found.groups()
            state[f"{part}.layers.{int(index) - (part == 'decoder')}.{rest}"] = weight.to(dtype)
        if "decoder.layers.0.weight" not in state:
            raise ValueError(other.format(" (it lacks decoder.1.weight)"))
        vae = diffusers.AutoencoderTiny(latent_channels=state["decoder.layers.0.weight"].shape[1])
        try:
            vae.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise ValueError(other.format(" (its layers differ)")) from error
    else:
        raise ValueError(f"there is no VAE at {path}")
    return vae.requires_grad_(False).eval()


@torch.no_grad()
def encode(vae, images: Tensor) -> Tensor:
    """Pictures in [-1, 1] [B 3 H W] to raw latents [B C h w]: the mean, where the VAE has a distribution.

    A VAE for videos is given one frame. Of one with a batch norm of its own (Flux.2's) the latents are those that come
    out of it, 2 x 2 cells as one.
    """
    images = images.to(vae.dtype)
    output = vae.encode(images.unsqueeze(2) if _is_for_videos(vae) else images)
    if hasattr(output, "latent_dist"):
        latents = output.latent_dist.mean
    else:
        latents = output.latent if hasattr(output, "latent") else output.latents
    if _is_for_videos(vae):
        latents = latents.squeeze(2)
    if hasattr(vae, "bn"):
        mean, std = _norm(vae)
        latents = (patchify(latents) - mean) / std
    return latents


@torch.no_grad()
def decode(vae, latents: Tensor) -> Tensor:
    """Raw latents to pictures, uint8 [B H W 3]."""
    if hasattr(vae, "bn"):
        mean, std = _norm(vae)
        latents = unpatchify(latents * std + mean)
    latents = latents.to(vae.dtype)
    images = vae.decode(latents.unsqueeze(2)).sample.squeeze(2) if _is_for_videos(vae) else vae.decode(latents).sample
    return (images.float().clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)


def _is_for_videos(vae) -> bool:
    return any(parameter.ndim == 5 for parameter in vae.parameters())


def _norm(vae) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel, [1 C 1 1]."""
    mean, variance = (values.view(1, -1, 1, 1) for values in (vae.bn.running_mean, vae.bn.running_var))
    return mean, (variance + vae.config.batch_norm_eps).sqrt()
