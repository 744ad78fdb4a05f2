"""Tiny diffusion transformers as diffusers saves them, and what diffusers' networks compute as the core calls them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import diffusers
import torch
from lavi_bridge.lavi_core.conditioning import Conditioning
from lavi_bridge.lavi_core.vision import NUM_TIMESTEPS, VISION_TARGETS, Told
from lavi_bridge.tests.training import dits
from torch import Tensor

# Name of a folder -> the family of ``dits``, and what of its config is another.
FOLDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sd3": ("sd3", {}),
    "sd3-deep": ("sd3", {"num_layers": 3, "dual_attention_layers": (), "qk_norm": None}),  # blocks are not heads
    "flux": ("flux", {}),
    "flux-schnell": ("flux_schnell", {}),
    "chroma": ("chroma", {}),
    "flux2": ("flux2", {"timestep_guidance_channels": 256}),
    "flux2-guided": ("flux2", {"timestep_guidance_channels": 256, "guidance_embeds": True}),
    "z_image": ("z_image", {}),
    "lumina2": ("lumina2", {}),
    "qwen_image": ("qwen_image", {}),
    "aura_flow": ("aura_flow", {}),
    "cosmos": ("cosmos", {}),
    "anima": ("cosmos", {}),
    "wan": ("wan", {}),
    "pixart_sigma": ("pixart_sigma", {}),
    "ernie_image": ("ernie_image", {}),
}
SD35_MEDIUM = {"caption_projection_dim": 1536, "pos_embed_max_size": 384, "qk_norm": "rms_norm"}
KLEIN = {"joint_attention_dim": 7680, "guidance_embeds": False}
# Families at the sizes of released models, as far as these are not the defaults of diffusers' classes.
REAL: tuple[tuple[str, dict[str, Any]], ...] = (
    ("sd3", {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "qk_norm": "rms_norm"}),
    ("sd3", {"num_layers": 24, "num_attention_heads": 24, "dual_attention_layers": tuple(range(13))} | SD35_MEDIUM),
    ("flux", {"guidance_embeds": True}),
    ("flux", {"guidance_embeds": False}),
    ("chroma", {}),
    ("flux2", {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24} | KLEIN),
    ("z_image", {}),
    ("lumina2", {"cap_feat_dim": 2304}),
    ("qwen_image", {}),
    ("aura_flow", {"pos_embed_max_size": 9216}),
    ("cosmos", {"num_attention_heads": 16, "extra_pos_embed_type": None, "rope_scale": (1.0, 4.0, 4.0)}),
    ("wan", {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}),
    (
        "ernie_image",
        {
            "hidden_size": 4096,
            "num_attention_heads": 32,
            "num_layers": 36,
            "ffn_hidden_size": 12288,
            "text_in_dim": 3072,
        },
    ),
)
# Their norms of queries and keys add another number to a variance in ComfyUI (1.2e-7) than in diffusers (1e-6, 1e-5).
LOUD = ("flux2", "lumina2", "z_image")
SIZE = (8, 12)  # of the latents: even rows and columns of tokens, not square
LEVELS = (0.8, 0.35)  # shares of noise


def write(folder: Path) -> dict[str, Tensor]:
    """Pipelines in ``folder``; NAME.{x, context, mask, pooled}, and NAME.LEVEL, the prediction; LEVEL.alone, that for
    the prompt without its padding."""
    expected: dict[str, Tensor] = {}
    for name, (family, changes) in FOLDERS.items():
        row = VISION_TARGETS[family]
        network = dits.write(family, folder / f"dit-{name}", changes=changes, own_latents=False)
        if name == "anima":
            dits.Flow(shift=3.0).save_pretrained(folder / f"dit-{name}" / "scheduler")
        if row.name in LOUD:
            _loud(network)
            network.save_pretrained(folder / f"dit-{name}" / dits.FAMILIES[family].folder)
        prompt = dits.prompt(2, 9, 14)
        given = {"context": prompt.context, "mask": prompt.mask.bool(), "pooled": prompt.pooled}
        given["x"] = torch.randn(1, row.latent_channels(network.config), *SIZE, generator=_seeded(1))
        pooled = prompt.pooled if row.pooled_key else None
        size = (SIZE[0] * row.pixels, SIZE[1] * row.pixels)
        told = Told(config=network.config, size=size, guidance=row.embedded_guidance)
        padded = Conditioning(prompt.context, None if row.text.masked == "refused" else given["mask"], pooled)
        alone = Conditioning(prompt.context[:, :9], None, pooled)
        for level in LEVELS:
            t = torch.tensor([NUM_TIMESTEPS * level])
            for end, heard in (("", padded), (".alone", alone)):
                given[f"{level}{end}"] = row.predict(network, given["x"], t, row.text.hear(heard), told)
        expected |= {f"dit-{name}.{key}": tensor for key, tensor in given.items()}
    return expected


def real_sizes() -> list[tuple[dict[str, Any], dict[str, list[int]]]]:
    """config.json, and name -> shape of each weight, of ``REAL``."""
    found = []
    with torch.device("meta"):
        for family, sizes in REAL:
            row = VISION_TARGETS[family]
            network = getattr(diffusers, row.diffusers_class)(**sizes)
            shapes = {name: list(weight.shape) for name, weight in network.state_dict().items()}
            found.append(({**network.config, "_class_name": row.diffusers_class}, shapes))
    return found


def _loud(network: Any) -> None:
    """Queries and keys eight times as large, which their norms take back."""
    for path, parameter in network.named_parameters():
        if re.search(r"\.(to|add)_[qk](_proj)?\.", path):
            parameter.mul_(8)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
