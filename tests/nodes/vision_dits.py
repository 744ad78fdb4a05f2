"""Tiny diffusion transformers as diffusers saves them, and what diffusers' networks compute as the core calls them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
    "flux-schnell": ("flux schnell", {}),
}
SIZE = (8, 12)  # of the latents: even rows and columns of tokens, not square
LEVELS = (0.8, 0.35)  # shares of noise


def write(folder: Path) -> dict[str, Tensor]:
    """Pipelines in ``folder``; NAME.{x, context, mask, pooled}, and NAME.LEVEL, the prediction; LEVEL.alone, that for
    the prompt without its padding."""
    expected: dict[str, Tensor] = {}
    for name, (family, changes) in FOLDERS.items():
        row = VISION_TARGETS[family.split()[0]]
        network = dits.write(family, folder / f"dit-{name}", changes=changes, own_latents=False)
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


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
