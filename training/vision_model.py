"""The frozen vision model, its VAE and its objective, from local folders."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..lavi_core.conditioning import Conditioning
from ..lavi_core.vision import VISION_TARGETS, VisionTarget, latent_scale, target_of
from .files import read_safetensors, reading
from .objective import Objective

VAE_FACTOR = 8  # pixels to a latent cell, in every VAE of the supported vision models
PIXELS = 2**20  # that go through a VAE at a time, which bounds its memory to a few GB


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

    def predict(self, x: Tensor, timesteps: Tensor, heard: Conditioning) -> Tensor:
        """One forward: x [B C H W], timesteps [B] -> [B C' H W], C' = 2 C where the network predicts variance too.

        A network that takes sizes is told those of the picture that x stands for. Raises ValueError where it takes a
        pooled vector and ``heard`` has none.
        """
        size = x.shape[-2] * VAE_FACTOR, x.shape[-1] * VAE_FACTOR
        return self.network(
            x,
            timestep=timesteps,
            encoder_hidden_states=heard.context,
            encoder_attention_mask=heard.mask,
            added_cond_kwargs=self.row.added(self.config, heard, size),
            return_dict=True,
        ).sample


TAESD_KEY = re.compile(r"(?:taesd_)?(encoder|decoder)\.(\d+)\.(.+)")


def network_folder(folder: str | Path) -> Path:
    """The folder of the network in a pipeline folder. Raises ValueError where there is none."""
    for name in ("unet", "transformer"):
        if (Path(folder) / name / "config.json").is_file():
            return Path(folder) / name
    raise ValueError(
        f"no vision model in {folder}: it needs unet/config.json or transformer/config.json, as diffusers' folder of a "
        "whole pipeline has"
    )


def read_config(folder: str | Path) -> tuple[dict[str, Any], VisionTarget]:
    """The network's config.json in a pipeline folder, and the row that it tells."""
    path = network_folder(folder) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not readable as JSON ({error})") from None
    return config, target_of(config)


def own_vae(folder: str | Path) -> Path:
    """The VAE's folder in a pipeline's. Raises ValueError where there is none."""
    found = [Path(folder) / name for name in ("vae", "vqvae") if (Path(folder) / name / "config.json").is_file()]
    if not found:
        raise ValueError(f"{folder} has no vae/ or vqvae/ with a config.json: name the VAE that belongs to it")
    return found[0]


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


def check_weights(folder: Path) -> None:
    """Raise ValueError for a model folder without safetensors, which diffusers would say in several lines."""
    if not any(folder.glob("*.safetensors")):
        pickled = "only pickled weights, which can run code" if any(folder.glob("*.bin")) else "no weights"
        raise ValueError(f"{folder} holds {pickled}; save the model again with save_pretrained(folder) of diffusers")


def pictures_at_once(size: int, most: int = 32) -> int:
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
    """Pictures in [-1, 1] [B 3 H W] to raw latents [B C h w]: the mean, where the VAE has a distribution."""
    output = vae.encode(images.to(vae.dtype))
    return output.latent_dist.mean if hasattr(output, "latent_dist") else output.latents


@torch.no_grad()
def decode(vae, latents: Tensor) -> Tensor:
    """Raw latents to pictures, uint8 [B H W 3]."""
    images = vae.decode(latents.to(vae.dtype)).sample
    return (images.float().clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
