"""FID against its formula by another library, and through torch-fidelity's Inception where that is installed."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from lavi_bridge.tests.training.evaluation.conftest import write_run
from lavi_bridge.tests.training.evaluation.models import write_weights
from lavi_bridge.training.commands import main
from lavi_bridge.training.evaluation.metric_weights import Inapplicable, Weights
from lavi_bridge.training.evaluation.metrics import METRICS, MetricInputs
from lavi_bridge.training.evaluation.metrics.fid import Statistics, distance, totals
from lavi_bridge.training.evaluation.prompts import Prompt
from lavi_bridge.training.evaluation.run_folder import Run, sha256_of
from PIL import Image


def features(seed: int, n: int, width: int = 5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(seed, 1, (n, width)) @ rng.normal(0, 1, (width, width))


def by_hand(a: np.ndarray, b: np.ndarray) -> float:
    """Heusel's formula as he computes it, by scipy's root of a matrix."""
    from scipy.linalg import sqrtm

    root = sqrtm(np.cov(a, rowvar=False) @ np.cov(b, rowvar=False))
    covariances = np.trace(np.cov(a, rowvar=False) + np.cov(b, rowvar=False) - 2 * root.real)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + covariances)


def test_the_distance_is_that_of_scipys_root() -> None:
    a, b = features(0, 200), features(1, 300)
    found = distance(Statistics.of(a, "x"), Statistics.of(b, "x"))
    assert found == pytest.approx(by_hand(a, b), rel=1e-9) and found > 1


def test_of_two_diagonals_it_is_a_sum_over_the_axes() -> None:
    a = Statistics(np.array([0.0, 1.0]), np.diag([4.0, 9.0]), 10, "x")
    b = Statistics(np.array([3.0, 1.0]), np.diag([1.0, 16.0]), 10, "x")
    assert distance(a, b) == pytest.approx(9 + (2 - 1) ** 2 + (3 - 4) ** 2)


def test_of_fewer_pictures_than_features_it_stays_real() -> None:
    a = Statistics.of(features(0, 4, 16), "x")
    assert distance(a, a) == pytest.approx(0, abs=1e-3)
    assert distance(a, Statistics.of(features(1, 4, 16), "x")) > 0


def test_a_category_has_its_own(run: Run) -> None:
    rows, reference = features(0, len(run.pictures)), Statistics.of(features(1, 50), "x")
    found = totals(run.pictures, rows, reference)
    assert set(found) == {"", "color", "spatial", "complex"}
    chosen = [i for i, picture in enumerate(run.pictures) if picture.category == "complex"]
    assert found["complex"] == pytest.approx(distance(Statistics.of(rows[chosen], "x"), reference))


def test_statistics_come_back_from_their_file(tmp_path: Path) -> None:
    written = Statistics.of(features(0, 9), "abc", 256)
    written.save(tmp_path / "s.npz")
    read = Statistics.load(tmp_path / "s.npz")
    assert (read.n, read.extractor, read.size) == (9, "abc", 256)
    assert np.array_equal(read.covariance, written.covariance) and np.array_equal(read.mean, written.mean)


def test_the_settings_say_what_extracted_what(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inception.pth").write_bytes(b"weights")
    sha = sha256_of(tmp_path / "inception.pth")
    Statistics.of(features(1, 50, 3), sha, 64).save(tmp_path / "s.npz")
    module = importlib.import_module("lavi_bridge.training.evaluation.metrics.fid")
    monkeypatch.setattr(module, "inception", lambda path, device: lambda images: np.stack(images).mean((1, 2)))
    weights = Weights.read(write_weights(tmp_path / "weights.toml", {"inception": tmp_path / "inception.pth"}))
    found = METRICS["fid"].measure(
        run.pictures, MetricInputs(weights=weights, device=torch.device("cpu"), reference=tmp_path / "s.npz")
    )
    settings = found.settings
    assert (settings["inception"], settings["format"], settings["features"]) == (sha[:12], "PNG", 3)
    assert "to 299" in settings["resized_by"] and settings["reference_size"] == 64 and settings["full_rank"]


def test_one_picture_has_none(tmp_path: Path) -> None:
    drawn = write_run(tmp_path / "run", [Prompt("a red circle", "color")], (1,))
    with pytest.raises(Inapplicable, match="at least 2 pictures, the run has 1: draw more"):
        METRICS["fid"].measure(drawn.pictures, MetricInputs(weights=Weights(), device=torch.device("cpu")))


def test_through_torch_fidelity(run: Run, tmp_path: Path) -> None:
    """Random Inception weights; stats and score by the commands, the distance by torch-fidelity's own functions."""
    library = pytest.importorskip("torch_fidelity")
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    torch.manual_seed(0)
    torch.save(blank(library).state_dict(), tmp_path / "inception.pth")
    weights = write_weights(tmp_path / "weights.toml", {"inception": tmp_path / "inception.pth"})
    images = str(run.folder / "samples")
    assert main(["evaluate", "stats", "--images", images, "--size", "32", "--weights", str(weights), "-o",
                 str(tmp_path / "s.npz")]) == 0  # fmt: skip
    given = MetricInputs(weights=Weights.read(weights), device=torch.device("cpu"), reference=tmp_path / "s.npz")
    found = METRICS["fid"].measure(run.pictures, given)
    assert found.settings["reference_n"] == len(run.pictures) and not found.settings["full_rank"]

    model = library.FeatureExtractorInceptionV3(
        "x", ["2048"], feature_extractor_weights_path=str(tmp_path / "inception.pth")
    )

    def of(images) -> dict[str, np.ndarray]:
        pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])
        return fid_features_to_statistics(model(pixels)[0].double())

    opened = [Image.open(picture.path).convert("RGB") for picture in run.pictures]
    ours, theirs = of(opened), of([image.resize((32, 32), Image.Resampling.BICUBIC) for image in opened])
    expected = fid_statistics_to_metric(ours, theirs, False)["frechet_inception_distance"]
    assert found.totals[""] == pytest.approx(expected, rel=1e-5)


def blank(library):
    """torch-fidelity's Inception with random weights: its constructor wants a file of them."""

    class Blank(library.FeatureExtractorInceptionV3):
        def load_state_dict(self, state, *args, **kwargs):
            return None

    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        torch.save({}, file.name)
        return Blank("blank", ["2048"], feature_extractor_weights_path=file.name)
