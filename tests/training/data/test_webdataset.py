"""WebDataset tars: what is read, in which order, how often, and what a bad one leads to."""

from __future__ import annotations

import io
import json
import shlex
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from lavi_bridge.training.data import SOURCES, LatentCache, latent_encoding, webdataset
from lavi_bridge.training.models.vae import encode, load_vae
from lavi_bridge.training.recipe import DataSection
from PIL import Image
from webdataset import TarWriter


def picture(number: int, size: tuple[int, int] = (40, 40)) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, (5 * number, 255 - 5 * number, 30)).save(data, "PNG")
    return data.getvalue()


def write_tar(path: Path, numbers: range, extra: dict[str, bytes] | None = None) -> Path:
    """With webdataset's own writer."""
    with path.open("wb") as file, TarWriter(file) as writer:
        for number in numbers:
            writer.write({"__key__": f"{number:04d}", "png": picture(number), "txt": f" picture {number} é\n"})
    if extra:
        with tarfile.open(path, "a") as archive:
            for name, data in extra.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    return path


def section(path: object, **more) -> DataSection:
    return DataSection(kind="webdataset", path=str(path), resolution=32, **more)


@pytest.fixture
def vae(tiny: Path):
    vae = load_vae(tiny / "vae.safetensors")
    vae.encoder.layers[-1].weight.mul_(300)
    return vae


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tars that were read, in their order."""
    names, members = [], webdataset._members
    monkeypatch.setattr(webdataset, "_members", lambda tar: (names.append(tar), members(tar))[1])
    return names


def check(cache: LatentCache, vae, numbers: list[int]) -> None:
    latents, captions = cache.batch(range(len(cache)), [0] * len(cache))
    assert captions == [f"picture {number} é" for number in numbers]
    for found, number in zip(latents, numbers, strict=True):
        image = np.asarray(Image.open(io.BytesIO(picture(number))).resize((32, 32)))
        expected = encode(vae, torch.tensor(image).permute(2, 0, 1)[None].float() / 127.5 - 1)
        assert torch.allclose(found, expected[0], atol=2e-2), number


def test_tars_stream_once_and_are_random_access_after(tmp_path: Path, vae, opened: list[str]) -> None:
    for k in range(3):
        write_tar(tmp_path / f"{k:03d}.tar", range(4 * k, 4 * k + 4))
    pattern = tmp_path / "{000..002}.tar"
    cache = LatentCache(SOURCES["webdataset"](section(pattern)), vae, tmp_path / "cache")
    check(cache, vae, list(range(12)))
    assert opened == [str(tmp_path / f"{k:03d}.tar") for k in range(3)]
    assert cache.name(5) == f"{tmp_path / '001.tar'} 0005"
    again = LatentCache(SOURCES["webdataset"](section(pattern)), vae, tmp_path / "cache")
    check(again, vae, list(range(12)))
    assert len(opened) == 3
    write_tar(tmp_path / "001.tar", range(20, 23))  # one changes, one is new
    write_tar(tmp_path / "003.tar", range(30, 31))
    cache = LatentCache(SOURCES["webdataset"](section(tmp_path / "{000..003}.tar")), vae, tmp_path / "cache")
    assert opened[3:] == [str(tmp_path / "001.tar"), str(tmp_path / "003.tar")]
    check(cache, vae, [0, 1, 2, 3, 20, 21, 22, 8, 9, 10, 11, 30])
    seen = [index for step in range(6) for index in cache.order(4, 0).batch(step)[0]]
    assert sorted(seen[:12]) == sorted(seen[12:]) == list(range(12)) and seen[:12] != sorted(seen[:12])
    training, held = cache.split(3, seed=0)
    assert list(cache._names()) == [cache.name(i) for i in range(12)]
    assert len(held) == 3 and len(cache.texts(training)) == 9 and cache.texts().caption(4, 0) == "picture 20 é"


def test_a_pass_that_was_stopped_goes_on_at_the_tar_it_was_in(
    tmp_path: Path, vae, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for k in range(3):
        write_tar(tmp_path / f"{k}.tar", range(4 * k, 4 * k + 4))
    source = SOURCES["webdataset"](section(tmp_path / "{0..2}.tar"))
    load = webdataset.WebDatasetSource._load

    def stop(self, data: bytes, name: str, problem: str):
        if name.endswith("0006"):
            raise KeyboardInterrupt
        return load(self, data, name, problem)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(webdataset.WebDatasetSource, "_load", stop)
        LatentCache(source, vae, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 1
    opened.clear()
    check(LatentCache(source, vae, tmp_path / "cache"), vae, list(range(12)))
    assert opened == [str(tmp_path / "1.tar"), str(tmp_path / "2.tar")]


@pytest.mark.parametrize("pack", ["tar", "tar.gz"])
def test_a_piped_tar_is_known_by_its_command(tmp_path: Path, vae, opened: list[str], pack: str) -> None:
    path = write_tar(tmp_path / "a.tar", range(4))
    if pack == "tar.gz":
        import gzip

        path = path.with_suffix(".tar.gz")
        path.write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    command = f"pipe:cat {shlex.quote(str(path))}"
    check(LatentCache(SOURCES["webdataset"](section(command)), vae, tmp_path / "cache"), vae, [0, 1, 2, 3])
    path.unlink()
    check(LatentCache(SOURCES["webdataset"](section(command)), vae, tmp_path / "cache"), vae, [0, 1, 2, 3])
    assert opened == [command]


def damaged(whole: bytes) -> dict[str, bytes]:
    header = whole.index(b"0002.png")  # of the third of four examples
    extended = header - 1024  # what stands before it: a header of more facts, and they
    end = -(-len(whole.rstrip(b"\0")) // 512) * 512
    return {
        "at the end of a member": whole[:extended],
        "in the facts of a member": whole[:header],
        "in a header": whole[: extended + 200],
        "in a picture": whole[: header + 600],
        "without its end": whole[:end],
        "a header destroyed": whole[:extended] + b"x" * 512 + whole[extended + 512 :],
        "two put together": whole + whole,
        "empty": b"",
        "no tar": b"<html>404</html>" * 100,
    }


@pytest.mark.parametrize("kind", list(damaged(b" " * 1024 + b"0002.png")))
@pytest.mark.parametrize("piped", [False, True])
def test_a_tar_that_is_cut_short_is_never_silently_shorter(tmp_path: Path, vae, kind: str, piped: bool) -> None:
    path = write_tar(tmp_path / "a.tar", range(4))
    whole = path.read_bytes()
    path.write_bytes(damaged(whole)[kind])
    address = f"pipe:cat {path}" if piped else str(path)
    with pytest.raises(ValueError, match=r"a\.tar is cut short or no tar \(.+\); fetch it again"):
        LatentCache(SOURCES["webdataset"](section(address)), vae, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*"))
    if kind == "in a picture":
        path.write_bytes(whole)
        check(LatentCache(SOURCES["webdataset"](section(address)), vae, tmp_path / "cache"), vae, [0, 1, 2, 3])


def test_a_command_that_fails_after_a_whole_tar_is_an_error(tmp_path: Path, vae) -> None:
    path = write_tar(tmp_path / "a.tar", range(4))
    with pytest.raises(ValueError, match=r"is cut short or no tar .*exit 3"):
        LatentCache(SOURCES["webdataset"](section(f"pipe:cat {path}; exit 3")), vae, tmp_path / "cache")


def test_captions_from_json_and_pictures_that_cannot_be_used(
    tmp_path: Path, vae, caplog: pytest.LogCaptureFixture
) -> None:
    extra = {
        "a.jpg": picture(50),
        "a.json": json.dumps({"caption": "of a", "prompt": "asked"}).encode(),
        "a.seg.png": picture(51),
        "b.png": b"no picture",
        "b.txt": b"of b",
        "c.png": picture(52),
        "d.txt": b"of d",
        "e.png": picture(53, (90, 30)),
        "e.json": b"{",
    }
    write_tar(tmp_path / "a.tar", range(80), extra)
    source = SOURCES["webdataset"](section(tmp_path / "a.tar"))
    for _ in range(2):
        caplog.clear()
        cache = LatentCache(source, vae, tmp_path / "cache", tmp_path / "bad.txt")
        assert len(cache) == 81 and cache.caption(80, 0) == "of a" and cache.name(80).endswith("a.tar a")
        assert "4 of 85 images are unreadable" in caplog.text
        listed = [line.split("a.tar ")[1] for line in (tmp_path / "bad.txt").read_text().splitlines()]
        assert listed[0].startswith("b: cannot identify image file")
        assert listed[1:] == [
            "c: no .txt, nor a .json with 'text' or 'caption'",
            "d: no image",
            "e: no .txt, nor a .json with 'text' or 'caption'",
        ]
    (tmp_path / "cache").rename(tmp_path / "other")
    other = SOURCES["webdataset"](section(tmp_path / "a.tar", caption_column="prompt"))
    with pytest.raises(ValueError, match=r"84 of 85 images in .*a\.tar are unreadable.*nor a \.json with 'prompt'"):
        LatentCache(other, vae, tmp_path / "other")


def test_too_many_unreadable_over_all_tars(tmp_path: Path, vae) -> None:
    write_tar(tmp_path / "0.tar", range(4), {"x.png": b"", "x.txt": b""})
    write_tar(tmp_path / "1.tar", range(14))
    with pytest.raises(ValueError, match=r"1 of 19 images are unreadable, more than 5% .*0\.tar x"):
        LatentCache(SOURCES["webdataset"](section(tmp_path / "{0..1}.tar")), vae, tmp_path / "cache")
    write_tar(tmp_path / "1.tar", range(16))
    assert len(LatentCache(SOURCES["webdataset"](section(tmp_path / "{0..1}.tar")), vae, tmp_path / "cache")) == 20


def test_bad_paths_are_named(tmp_path: Path, vae) -> None:
    write_tar(tmp_path / "0.tar", range(2))
    for path, message in (
        ("", r"data\.path is empty"),
        (tmp_path / "{0..2}.tar", r"2 of 3 tars are not there, the first is .*1\.tar"),
        ("${NOWHERE}/0.tar", r"data\.path '\$\{NOWHERE\}/0\.tar' cannot be expanded"),
    ):
        with pytest.raises(ValueError, match=message):
            SOURCES["webdataset"](section(path))
    write_tar(tmp_path / "empty.tar", range(0))
    with pytest.raises(ValueError, match="no captioned images in"):
        LatentCache(SOURCES["webdataset"](section(tmp_path / "empty.tar")), vae, tmp_path / "cache")
    write_tar(tmp_path / "twice.tar", range(2), {"0001.png": picture(3)})
    with pytest.raises(ValueError, match=r"twice\.tar: 0001\.png: duplicate file name"):
        LatentCache(SOURCES["webdataset"](section(tmp_path / "twice.tar")), vae, tmp_path / "cache")


def test_a_large_tar_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read no further than pictures are decoded ahead."""
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    write_tar(tmp_path / "a.tar", range(50))
    read, members = [], webdataset._members
    monkeypatch.setattr(webdataset, "_members", lambda tar: (read.append(member) or member for member in members(tar)))
    (shard,) = SOURCES["webdataset"](section(tmp_path / "a.tar")).shards()
    ahead = []
    for number, (_, image) in enumerate(latent_encoding._loaded(shard.read())):
        assert image.shape == (32, 32, 3)  # type: ignore[union-attr]
        ahead.append(len(read) / 2 - number - 1)
    assert len(ahead) == 50 and latent_encoding.AHEAD * 2 <= max(ahead) <= latent_encoding.AHEAD * 2 + 2
