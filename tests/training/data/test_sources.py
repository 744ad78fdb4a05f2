"""Captioned pictures from files: what is read, what is named when it cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lavi_bridge.training.data import SOURCES, LatentCache, Order, UnreadableImage
from lavi_bridge.training.data import sources as sources_module
from lavi_bridge.training.models.vae import load_vae
from lavi_bridge.training.recipe import DataSection
from PIL import Image
from safetensors import safe_open


def pictures(folder: Path, count: int, broken: int = 0) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = []
    for i in range(count):
        path = folder / f"{i:03d}.png"
        if i < broken:
            path.write_bytes(b"not a picture")
        else:
            Image.new("RGB", (48, 40), (i % 256, 20, 30)).save(path)
        paths.append(path)
    return paths


def tsv(tmp_path: Path, count: int, broken: int = 0) -> DataSection:
    paths = pictures(tmp_path / "images", count, broken)
    table = tmp_path / "captions.tsv"
    table.write_text("".join(f"images/{p.name}\tpicture\tnumber {i}\n" for i, p in enumerate(paths)))
    return DataSection(kind="tsv", path=str(table), resolution=32)


def test_tsv_paths_are_relative_to_the_table_and_captions_keep_their_tabs(tmp_path: Path) -> None:
    source = SOURCES["tsv"](tsv(tmp_path, 3))
    assert len(source) == 3 and source.caption(2, 0) == "picture\tnumber 2"
    assert source.image(2).shape == (32, 32, 3) and tuple(source.image(2)[5, 5]) == (2, 20, 30)


def test_a_line_without_a_tab_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("a.png\tfine\nb.png no tab\n")
    with pytest.raises(ValueError, match="line 2 has no tab"):
        SOURCES["tsv"](DataSection(kind="tsv", path=str(tmp_path / "t.tsv")))


def test_folder_pairs_images_with_their_captions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for path in pictures(tmp_path / "f", 2):
        path.with_suffix(".txt").write_text(f" caption of {path.stem}\n")
    source = SOURCES["folder"](DataSection(kind="folder", path=str(tmp_path / "f"), resolution=32))
    assert [source.caption(i, 0) for i in range(2)] == ["caption of 000", "caption of 001"]
    assert "pictures left out" not in caplog.text
    Image.new("RGB", (32, 32)).save(tmp_path / "f" / "moving.gif")
    assert len(SOURCES["folder"](DataSection(kind="folder", path=str(tmp_path / "f"), resolution=32))) == 2
    assert "pictures left out: 1, the first is" in caplog.text and "moving.gif; those in .bmp, .jpeg" in caplog.text
    (tmp_path / "f" / "001.txt").unlink()
    with pytest.raises(ValueError, match=r"1 of 2 images have no \.txt.*001\.png"):
        SOURCES["folder"](DataSection(kind="folder", path=str(tmp_path / "f")))


@pytest.mark.parametrize("mark", ["\u2028", "\x85", "\x0c"])
def test_only_a_newline_ends_a_line_of_the_table(tmp_path: Path, mark: str) -> None:
    text = f"a.png\tone{mark}two\r\nb.png\tthree\n"
    (tmp_path / "t.tsv").write_bytes(text.encode("utf-8-sig"))
    source = SOURCES["tsv"](DataSection(kind="tsv", path=str(tmp_path / "t.tsv")))
    assert [source.caption(i, 0) for i in range(len(source))] == [f"one{mark}two", "three"]
    assert source.name(0) == str(tmp_path / "a.png")  # no byte order mark in it


def test_a_picture_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    section = tsv(tmp_path, 1)
    picture = Image.new("RGB", (48, 48), (200, 0, 0))
    picture.paste((0, 0, 200), (0, 0, 48, 24))  # blue above red
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    picture.save(tmp_path / "images" / "000.png", exif=exif)
    image = SOURCES["tsv"](section).image(0)
    assert tuple(image[4, 4]) == (200, 0, 0) and tuple(image[28, 4]) == (0, 0, 200)


def test_whatever_a_decoder_raises_is_an_unreadable_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = SOURCES["tsv"](tsv(tmp_path, 1))
    for error in (KeyError("tag"), ZeroDivisionError(), MemoryError()):

        def decode(file, problem=error):
            raise problem

        monkeypatch.setattr("PIL.ImageOps.exif_transpose", decode)
        with pytest.raises(MemoryError if isinstance(error, MemoryError) else UnreadableImage):
            source.image(0)


@pytest.mark.parametrize("kind", ["tsv", "folder"])
def test_an_empty_data_set_is_refused(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "empty"
    target.mkdir() if kind == "folder" else target.write_text("\n")
    with pytest.raises(ValueError, match="no captioned images"):
        SOURCES[kind](DataSection(kind=kind, path=str(target)))  # type: ignore[arg-type]


def test_unreadable_images_are_named_counted_and_left_out(tmp_path: Path, tiny: Path) -> None:
    source = SOURCES["tsv"](tsv(tmp_path, 40, broken=2))
    cache = LatentCache(source, load_vae(tiny / "vae.safetensors"), tmp_path / "cache", tmp_path / "bad.txt")
    assert len(cache) == 38
    listed = (tmp_path / "bad.txt").read_text().splitlines()
    assert len(listed) == 2 and "000.png" in listed[0] and "001.png" in listed[1]
    latents, captions = cache.batch([0], [0])
    assert captions == ["picture\tnumber 2"] and latents.shape == (1, 4, 4, 4)


def test_unreadable_images_are_named_when_the_latents_are_on_disk(
    tmp_path: Path, tiny: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, vae = SOURCES["tsv"](tsv(tmp_path, 40, broken=2)), load_vae(tiny / "vae.safetensors")
    LatentCache(source, vae, tmp_path / "cache")
    caplog.clear()
    cache = LatentCache(source, vae, tmp_path / "cache", tmp_path / "bad.txt")
    assert len(cache) == 38 and "2 of 40 images are unreadable" in caplog.text
    listed = (tmp_path / "bad.txt").read_text().splitlines()
    assert [line.split(": ")[0] for line in listed] == [source.name(0), source.name(1)]
    assert all("cannot identify" in line for line in listed)


def test_a_shard_without_a_readable_image_is_skipped(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section, vae = tsv(tmp_path, 41, broken=1), load_vae(tiny / "vae.safetensors")
    whole = LatentCache(SOURCES["tsv"](section), vae, tmp_path / "whole")
    lines = Path(section.path).read_text().splitlines()
    Path(section.path).write_text("\n".join([*lines[1:], lines[0]]))  # the broken one comes last
    monkeypatch.setattr(sources_module, "SHARD", 20)
    for _ in range(2):
        cache = LatentCache(SOURCES["tsv"](section), vae, tmp_path / "cache")
        places = [39, 0, 20, 19, 7]
        assert len(cache) == 40 and len(list((tmp_path / "cache").iterdir())) == 3
        found, expected = (c.batch(places, [0] * 5) for c in (cache, whole))
        assert found[1] == expected[1] and torch.allclose(found[0], expected[0], atol=2e-3)
        with safe_open(sorted((tmp_path / "whole").iterdir())[0], "pt") as file:
            assert torch.equal(expected[0], file.get_tensor("latents.4x4")[places].float())


def test_more_than_five_percent_unreadable_stops(tmp_path: Path, tiny: Path) -> None:
    source = SOURCES["tsv"](tsv(tmp_path, 40, broken=3))
    with pytest.raises(ValueError, match=r"3 of 40 images are unreadable, more than 5%.*000\.png"):
        LatentCache(source, load_vae(tiny / "vae.safetensors"), tmp_path / "cache")


def test_a_changed_picture_is_encoded_anew(tmp_path: Path, tiny: Path) -> None:
    section, vae = tsv(tmp_path, 2), load_vae(tiny / "vae.safetensors")
    before = LatentCache(SOURCES["tsv"](section), vae, tmp_path / "cache").batch([0, 1], [0, 0])[0]
    Image.new("RGB", (64, 64), (250, 250, 0)).save(tmp_path / "images" / "001.png")
    after = LatentCache(SOURCES["tsv"](section), vae, tmp_path / "cache").batch([0, 1], [0, 0])[0]
    assert np.allclose(before[0], after[0]) and not np.allclose(before[1], after[1])


def test_the_order_is_a_function_of_seed_and_step() -> None:
    order = Order(10, 4, seed=7)
    seen = [order.batch(step) for step in range(5)]
    assert [Order(10, 4, seed=7).batch(step) for step in (4, 0)] == [seen[4], seen[0]]
    flat = [index for indices, _ in seen for index in indices]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10)) and flat[:10] != flat[10:]
    assert [epoch for _, epochs in seen for epoch in epochs] == [0] * 10 + [1] * 10
