"""How far drawn pictures are from true ones, whatever they show: a Fréchet distance on the VAE's own latents.

It is no FID: the features are the demo VAE's latents, averaged over the cells of a 4 x 4 grid, 64 numbers a picture,
divided by their spread over true pictures. Zero would be the true distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from ..evaluation.metrics.fid import Statistics, distance
from ..evaluation.shapes import ROWS, Settings, bench
from ..shapebench import render
from ..vision_model import encode

GRID = 4
BATCH = 32


def features(vae: Any, pictures: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Pictures uint8 [B H W 3] -> float64 [B F]."""
    device = next(vae.parameters()).device
    found = []
    for start in range(0, len(pictures), BATCH):
        images = torch.from_numpy(np.stack(list(pictures[start : start + BATCH]))).permute(0, 3, 1, 2)
        latents = encode(vae, images.to(device, torch.float32) / 127.5 - 1)
        found.append(functional.adaptive_avg_pool2d(latents.float(), GRID).flatten(1).cpu().numpy())
    return np.concatenate(found).astype(np.float64)


def of_true_pictures(vae: Any, settings: Settings, path: Path, seed: int = 10_000) -> Statistics:
    """Of pictures of the prompts of another seed, kept at ``path``."""
    if path.is_file():
        return Statistics.load(path)
    from dataclasses import replace

    scenes = [scene for row in ROWS for scene in bench(row, replace(settings, seed=seed))[1]]
    found = Statistics.of(features(vae, [render(scene, 128) for scene in scenes]), "demo VAE latents, 4 x 4")
    found.save(path)
    return found


def frechet(vae: Any, pictures: np.ndarray, truth: Statistics) -> float:
    """In units of the true pictures' own spread: both are scaled by it, dimension by dimension."""
    scale = np.sqrt(np.diag(truth.covariance))
    drawn = Statistics.of(features(vae, pictures) / scale, truth.extractor)
    scaled = Statistics(truth.mean / scale, truth.covariance / np.outer(scale, scale), truth.n, truth.extractor)
    return distance(drawn, scaled)
