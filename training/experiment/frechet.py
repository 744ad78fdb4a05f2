"""How far drawn pictures are from true ones, whatever they show: a Fréchet distance on the VAE's own latents.

It is no FID: the features are the demo VAE's latents, averaged over the cells of a 4 x 4 grid, 64 numbers a picture,
divided by their spread over true pictures. Zero would be the true distribution.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from ...lavi_core.config import from_dict
from ...lavi_core.files import write_text
from ..evaluation.metrics.fid import Statistics, distance
from ..evaluation.shapebench import ROWS, Settings, bench
from ..models.vae import encode
from ..shapebench import GROUND, render

FLOOR = "floor.json"
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


def of_true_pictures(vae: Any, settings: Settings, work: Path, seed: int = 10_000) -> Statistics:
    """Of pictures of the prompts of another seed, kept in ``work``."""
    path = work / f"true-{settings.prompts}.npz"
    if path.is_file():
        return Statistics.load(path)
    scenes = [scene for row in ROWS for scene in bench(row, replace(settings, seed=seed))[1]]
    found = Statistics.of(features(vae, [render(scene, 128) for scene in scenes]), "demo VAE latents, 4 x 4")
    found.save(path)
    return found


@dataclass(frozen=True)
class Floor:
    """What the distance comes to: true, of true pictures of the judged prompts, which are finitely many; blank, of
    pictures of the ground with nothing on it."""

    true: float
    blank: float

    @classmethod
    def load(cls, work: Path) -> Floor:
        try:
            return from_dict(cls, json.loads((work / FLOOR).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ValueError(f"{work / FLOOR} is not there or not whole ({error}); run the plan again") from None


def measure_floor(vae: Any, settings: Settings, work: Path) -> None:
    """Write ``work``/floor.json, where it is not there yet."""
    if (work / FLOOR).is_file():
        return
    truth = of_true_pictures(vae, settings, work)
    true = np.stack([render(scene, 128) for row in ROWS for scene in bench(row, settings)[1]])
    blank = np.full_like(true, GROUND)
    found = Floor(frechet(vae, true, truth), frechet(vae, blank, truth))
    write_text(work / FLOOR, json.dumps(asdict(found)))


def frechet(vae: Any, pictures: np.ndarray, truth: Statistics) -> float:
    """In units of the true pictures' own spread: both are scaled by it, dimension by dimension."""
    scale = np.sqrt(np.diag(truth.covariance))
    drawn = Statistics.of(features(vae, pictures) / scale, truth.extractor)
    scaled = Statistics(truth.mean / scale, truth.covariance / np.outer(scale, scale), truth.n, truth.extractor)
    return distance(drawn, scaled)
