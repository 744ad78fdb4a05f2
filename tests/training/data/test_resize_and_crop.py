"""The shapes that pictures are brought into."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lavi_bridge.training.data.resize_and_crop import AspectBuckets, Size, UnreadableImage, bucket_sizes
from lavi_bridge.training.recipe import DataSection
from PIL import Image


def test_the_sizes_at_512() -> None:
    """Worked out by hand: 262144 pixels over the width, down to a multiple of 64."""
    wide = [Size(512, 512), Size(448, 576), Size(384, 640)]
    assert bucket_sizes(512, 64, 2.0) == sorted({*wide, *(Size(s.width, s.height) for s in wide)})
    assert Size(320, 704) in bucket_sizes(512, 64, 2.2) and Size(320, 768) in bucket_sizes(512, 64, 2.4)
    assert bucket_sizes(512, 64, 1.0) == [Size(512, 512)]


@pytest.mark.parametrize(("resolution", "step", "ratio"), [(512, 64, 2.0), (1024, 64, 4.0), (300 // 8 * 8, 8, 3.0)])
def test_every_size_keeps_within_area_step_and_ratio(resolution: int, step: int, ratio: float) -> None:
    sizes = bucket_sizes(resolution, step, ratio)
    assert len(sizes) > 4 and {Size(s.width, s.height) for s in sizes} == set(sizes)
    for height, width in sizes:
        assert height % step == width % step == 0 and max(height, width) <= ratio * min(height, width)
        assert resolution**2 - step * max(height, width) < height * width <= resolution**2


def test_a_picture_goes_to_the_nearest_aspect_is_scaled_to_cover_it_and_cropped_to_the_centre(tmp_path: Path) -> None:
    buckets = AspectBuckets(DataSection(kind="folder", resolution=64, buckets=True, bucket_step=16))
    assert buckets.sizes == [Size(48, 80), Size(64, 64), Size(80, 48)]
    # 3:2 is 1.11 times narrower than 5:3; 5:4 is nearer to 1:1; alike in both directions.
    for width, height, expected in (
        (150, 100, (48, 80)),
        (125, 100, (64, 64)),
        (1000, 100, (48, 80)),
        (13, 10, (48, 80)),
    ):
        assert buckets.size(width, height) == expected and buckets.size(height, width) == (expected[1], expected[0])
    picture = np.zeros((144, 240, 3), dtype=np.uint8)
    picture[:, :, 0] = np.arange(240)  # 5:3, so that it fits whole
    Image.fromarray(picture).save(tmp_path / "a.png")
    found = buckets.read(tmp_path / "a.png", "a")
    assert found.shape == (48, 80, 3) and abs(found[:, 1:-1, 0] - (1.0 + 3 * np.arange(1, 79))).max() <= 1
    picture = np.zeros((20, 60, 3), dtype=np.uint8)  # 3:1 and small: 2.4 times larger, columns 13.3 to 46.7 are left
    picture[:, :, 0] = np.arange(60) * 4
    Image.fromarray(picture).save(tmp_path / "b.png")
    found = buckets.read(tmp_path / "b.png", "b")
    assert found.shape == (48, 80, 3) and abs(int(found[9, 0, 0]) - 52) <= 1 and abs(int(found[9, -1, 0]) - 184) <= 1


def test_a_gray_picture_of_16_bits_keeps_its_brightness(tmp_path: Path) -> None:
    section = DataSection(kind="folder", path=str(tmp_path), resolution=32)
    Image.fromarray(np.full((32, 32), 16448, np.uint16)).save(tmp_path / "scan.png")  # a quarter: Pillow says white
    assert (AspectBuckets(section).read(tmp_path / "scan.png", "scan.png") == 64).all()
    Image.fromarray(np.full((32, 32), 0.25, np.float32)).save(tmp_path / "depth.tiff")
    with pytest.raises(UnreadableImage, match=r"depth.tiff: has 32 bits a pixel \(mode F\)"):
        AspectBuckets(section).read(tmp_path / "depth.tiff", "depth.tiff")


def test_bad_settings_are_named() -> None:
    for change, message in (
        ({"resolution": 500}, "data.resolution must be a multiple of 8 pixels, which make one latent, got 500"),
        ({"bucket_step": 4}, "data.bucket_step must be a multiple of 8"),
        ({"buckets": True, "resolution": 32}, r"data.bucket_step 64 is more than data.resolution 32"),
        ({"bucket_ratio": 0.5}, r"longer side over the shorter, at least 1, got 0\.5"),
        ({"validation": -1}, "data.validation is a number of pictures, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            DataSection(kind="folder", **change)  # type: ignore[arg-type]
