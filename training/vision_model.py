"""The frozen vision model, its VAE and its objective, from local folders."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..lavi_core.vision import VISION_TARGETS, latent_scale
from .files import read_safetensors, reading
from .objective import Objective


@dataclass
class VisionModel:
    """network: the diffusers U-Net or transformer. scale: raw VAE latents times this are what the network sees."""

    network: nn.Module
    objective: Objective
    scale: float
    model_id: str
    target: str

    @property
    def context_width(self) -> int:
        return VISION_TARGETS[self.target].context_width(self.config)

    @property
    def latent_channels(self) -> int:
        return self.config["in_channels"]

    @property
    def config(self) -> dict[str, Any]:
        return dict(self.network.config)  # type: ignore[arg-type]

    def predict(self, x: Tensor, timesteps: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """One forward: x [B C H W], timesteps [B], context [B T W], mask [B T] bool or None."""
        extra = {}
        if mask is not None:
            extra["encoder_attention_mask"] = mask
        if self.config["_class_name"] == "PixArtTransformer2DModel":
            extra["added_cond_kwargs"] = {"resolution": None, "aspect_ratio": None}
        return self.network(x, timestep=timesteps, encoder_hidden_states=context, return_dict=True, **extra).sample


TAESD_KEY = re.compile(r"(?:taesd_)?(encoder|decoder)\.(\d+)\.(.+)")


def network_folder(folder: str | Path) -> Path:
    """The folder of the network in a pipeline folder. Raises ValueError where there is none."""
    for name in ("unet", "transformer"):
        if (Path(folder) / name / "config.json").is_file():
            return Path(folder) / name
    raise ValueError(f"no vision model in {folder}: it needs unet/config.json or transformer/config.json")


def load_vision_model(folder: str | Path, target: str, dtype: torch.dtype = torch.float32) -> VisionModel:
    """From a diffusers pipeline folder: ``unet/`` or ``transformer/`` beside ``scheduler/``."""
    import diffusers

    row = VISION_TARGETS[target]
    folder = Path(folder)
    part = network_folder(folder)
    config = json.loads((part / "config.json").read_text())
    scale = latent_scale(part, row)
    if config["_class_name"] != row.diffusers_class:
        raise ValueError(f"{part} holds a {config['_class_name']}, the target {target!r} is a {row.diffusers_class}")
    with reading(part):
        network = getattr(diffusers, row.diffusers_class).from_pretrained(part, torch_dtype=dtype, use_safetensors=True)
    network.requires_grad_(False).eval()
    return VisionModel(
        network=network,
        objective=Objective.load(folder / "scheduler"),
        scale=scale,
        model_id=config.get("model_id", folder.name),
        target=target,
    )


def load_vae(path: str | Path, dtype: torch.dtype = torch.float32):
    """A diffusers VAE folder, or a TAESD file in ComfyUI's key names; frozen, in eval mode."""
    import diffusers

    path = Path(path)
    if path.is_dir():
        name = json.loads((path / "config.json").read_text())["_class_name"]
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
    """Pictures in [-1, 1] [B 3 H W] to raw latents [B C h w]: the mean, where the VAE has a distribution."""
    output = vae.encode(images.to(vae.dtype))
    return output.latent_dist.mean if hasattr(output, "latent_dist") else output.latents


@torch.no_grad()
def decode(vae, latents: Tensor) -> Tensor:
    """Raw latents to pictures, uint8 [B H W 3]."""
    images = vae.decode(latents.to(vae.dtype)).sample
    return (images.float().clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
