"""LAION's aesthetic predictors, v1 and v2: a head on normalised CLIP ViT-L/14 picture embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..run_folder import Picture, batches
from .clip import Clip, resized_by
from .metric import Measurement, MetricInputs


def aesthetic_v1(pictures: Sequence[Picture], inputs: MetricInputs) -> Measurement:
    """github.com/LAION-AI/aesthetic-predictor: one linear layer."""
    return _measure(pictures, inputs, "aesthetic-v1")


def aesthetic_v2(pictures: Sequence[Picture], inputs: MetricInputs) -> Measurement:
    """github.com/christophschuhmann/improved-aesthetic-predictor: five linear layers with nothing between them but
    dropout, which is off."""
    return _measure(pictures, inputs, "aesthetic-v2")


@torch.no_grad()
def _measure(pictures: Sequence[Picture], inputs: MetricInputs, role: str) -> Measurement:
    path = inputs.weights.get(role)
    clip = Clip.load(inputs.weights, "clip-l14", inputs.device)
    head = load_head(path, clip.model.config.projection_dim)
    values = {}
    for batch, images in batches(pictures, inputs.batch_size, role):
        scores = head(clip.images(images)).squeeze(-1).tolist()
        values |= {picture.id: score for picture, score in zip(batch, scores, strict=True)}
    return Measurement(values=values, settings={"head": path.name, "model": clip.name, "resized_by": resized_by(clip)})


def load_head(path: Path, width: int) -> nn.Module:
    """The head in a file of either version, which takes embeddings of ``width``.

    v1 has one layer (weight, bias), v2 several (layers.0.weight, ...). Raises ValueError for any other file.
    """
    state = _read(path)
    stems = sorted({key.rpartition(".")[0] for key in state}, key=_place)
    names = {f"{stem}.{part}".removeprefix(".") for stem in stems for part in ("weight", "bias")}
    if set(state) != names or not all(state[f"{stem}.weight".removeprefix(".")].ndim == 2 for stem in stems):
        raise ValueError(f"{path} is no aesthetic head: it holds {', '.join(sorted(state)[:4])}")
    layers = []
    for stem in stems:
        weight, bias = (state[f"{stem}.{part}".removeprefix(".")].float() for part in ("weight", "bias"))
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": bias})
        layers.append(layer)
    widths = [layer.in_features for layer in layers] + [layers[-1].out_features]
    if widths[0] != width or widths[-1] != 1:
        raise ValueError(
            f"the head {path} takes embeddings of width {widths[0]} and gives {widths[-1]} numbers, CLIP gives width "
            f"{width} and 1 is wanted: take the head that was made for this CLIP"
        )
    return nn.Sequential(*layers).eval()


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from ....lavi_core.files import read_safetensors

        return read_safetensors(path)
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises pickle's, zipfile's and its own
        raise ValueError(f"{path} is not readable as weights ({str(error).splitlines()[0]})") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} is no aesthetic head: it holds no table of weights")
    return state


def _place(stem: str) -> int:
    number = stem.rpartition(".")[2]
    return int(number) if number.isdigit() else -1
