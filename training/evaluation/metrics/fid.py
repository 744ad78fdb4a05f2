"""FID (arXiv 1706.08500) on torch-fidelity's Inception, against statistics computed once from true pictures."""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ....lavi_core.files import write_bytes
from ...models.device import pick_device
from ...models.progress import bar
from ..metric_weights import Inapplicable, Unavailable, Weights
from ..run_folder import Picture, batches, read_image, sha256_of
from .metric import Measurement, MetricInputs

Extractor = Callable[[Sequence[np.ndarray]], np.ndarray]  # pictures uint8 [H W 3] -> features float64 [B F]
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


@dataclass(frozen=True)
class Statistics:
    """mean [F], covariance [F F] (of n - 1), float64. extractor: sha256 of its weights. size: 0 = as they were."""

    mean: np.ndarray
    covariance: np.ndarray
    n: int
    extractor: str
    size: int = 0

    @classmethod
    def of(cls, features: np.ndarray, extractor: str, size: int = 0) -> Statistics:
        """features: float64 [N F]. Raises ValueError for fewer than 2 pictures."""
        if len(features) < 2:
            raise ValueError(f"a covariance needs at least 2 pictures, got {len(features)}")
        return cls(features.mean(0), np.atleast_2d(np.cov(features, rowvar=False)), len(features), extractor, size)

    def save(self, path: str | Path) -> None:
        file = io.BytesIO()
        np.savez_compressed(file, **vars(self))
        write_bytes(path, file.getvalue())

    @classmethod
    def load(cls, path: Path) -> Statistics:
        if not path.is_file():
            raise ValueError(f"there are no statistics at {path}; make them with `evaluate stats`")
        try:
            with np.load(path) as file:
                numbers = {key: file[key] for key in ("mean", "covariance", "n", "extractor", "size")}
        except (ValueError, KeyError, OSError) as error:
            raise ValueError(f"{path} holds no statistics of `evaluate stats` ({error})") from None
        n, extractor, size = (numbers[key].item() for key in ("n", "extractor", "size"))
        return cls(numbers["mean"], numbers["covariance"], n, extractor, size)


def distance(a: Statistics, b: Statistics) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), eq. 6.

    The trace of the root is the sum of the roots of the eigenvalues of R C_b R with R = C_a^(1/2): that matrix is
    symmetric, so that no rounding makes them complex, of however few pictures the covariances are.
    """
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ b.covariance @ root).clip(0)).sum()
    return float(((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross)


def fid(pictures: Sequence[Picture], inputs: MetricInputs) -> Measurement:
    """Of each category of at least 2 pictures and of all, against ``inputs.reference``. Raises Inapplicable for one
    picture, which has no covariance."""
    if len(pictures) < 2:
        raise Inapplicable(f"a FID needs at least 2 pictures, the run has {len(pictures)}: draw more prompts or seeds")
    path = inputs.weights.get("inception")
    if inputs.reference is None:
        raise Unavailable("statistics of true pictures are missing: make them with `evaluate stats`, give --reference")
    reference, extractor = Statistics.load(inputs.reference), sha256_of(path)
    if reference.extractor != extractor:
        raise ValueError(
            f"{inputs.reference} was made with an Inception of sha256 {reference.extractor[:12]}, {path} has "
            f"{extractor[:12]}: make the statistics again"
        )
    extract = inception(path, inputs.device)
    features = np.concatenate([extract(images) for _, images in batches(pictures, inputs.batch_size, "FID")])
    settings = {
        "reference": inputs.reference.name,
        "reference_n": reference.n,
        "reference_size": reference.size or "as they were",
        "inception": extractor[:12],
        "format": "PNG",
        "resized_by": "torch-fidelity: bilinear as in TensorFlow 1, to 299",
        "features": features.shape[1],
        "full_rank": len(pictures) > features.shape[1],
    }
    return Measurement(totals=totals(pictures, features, reference), settings=settings)


def totals(pictures: Sequence[Picture], features: np.ndarray, reference: Statistics) -> dict[str, float]:
    """Category -> FID of its rows of ``features`` [N F], "" for all of them."""
    groups = {"": list(range(len(pictures)))}
    for i, picture in enumerate(pictures):
        if picture.category:
            groups.setdefault(picture.category, []).append(i)
    return {
        name: distance(Statistics.of(features[rows], reference.extractor), reference)
        for name, rows in groups.items()
        if len(rows) > 1
    }


def inception(path: Path, device: torch.device) -> Extractor:
    """torch-fidelity's port of TensorFlow's 2015 Inception, its 2048 pooled features.

    Raises Unavailable where torch-fidelity cannot be imported, ValueError for a file that holds more than weights.
    """
    try:
        import torch_fidelity  # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision of another torch
        raise Unavailable(f"torch-fidelity cannot be imported ({error}): install lavi-bridge[eval]") from None
    try:  # torch-fidelity opens the file with all that pickle allows: first see that it is weights alone
        torch.load(path, map_location="cpu", weights_only=True)
        model: Any = torch_fidelity.FeatureExtractorInceptionV3(
            "inception", ["2048"], feature_extractor_weights_path=str(path)
        )
    except Exception as error:  # torch raises pickle's, zipfile's and its own
        raise ValueError(f"{path} is no Inception of torch-fidelity ({str(error).splitlines()[0]})") from None
    model.to(device)

    def extract(images: Sequence[np.ndarray]) -> np.ndarray:
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(device)
        with torch.no_grad():
            return model(pixels)[0].double().cpu().numpy()

    return extract


def stats(args: argparse.Namespace) -> str:
    """``lavi-bridge evaluate stats``: write the statistics of a folder's pictures and say of how many."""

    folder = Path(args.images)
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"there are no pictures in {folder} ({', '.join(sorted(SUFFIXES))})")
    try:
        path = Weights.read(args.weights).get("inception")
        extract = inception(path, pick_device(args.device))
    except Unavailable as error:
        raise ValueError(str(error)) from None
    images = _of_one_size(files, args.size)
    batch_size = args.batch_size if args.size else 1  # as they were, each has a size of its own
    features, batch = [], []
    for image in bar(images, total=len(files), desc="FID", unit="picture"):
        batch.append(image)
        if len(batch) == batch_size:
            features.append(extract(batch))
            batch = []
    features += [extract(batch)] if batch else []
    Statistics.of(np.concatenate(features), sha256_of(path), args.size or 0).save(args.output)
    return f"{args.output}: statistics of {len(files)} pictures"


def _of_one_size(files: Iterable[Path], size: int | None) -> Iterable[np.ndarray]:
    from PIL import Image, ImageOps

    for file in files:
        image = read_image(file)
        if size:
            image = np.asarray(ImageOps.fit(Image.fromarray(image), (size, size), Image.Resampling.BICUBIC))
        yield image
