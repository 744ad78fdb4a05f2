"""A Hugging Face image folder with its metadata.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from lavi_bridge.training.data import SOURCES
from lavi_bridge.training.dry_run import data
from lavi_bridge.training.recipe import DataSection
from PIL import Image
from PIL.PngImagePlugin import PngImageFile


def folder(path: Path, *records: object) -> Path:
    (path / "train").mkdir(parents=True)
    for i in range(2):
        Image.new("RGB", (40, 40), (i, 20, 30)).save(path / "train" / f"{i}.png")
    lines = [line if isinstance(line, str) else json.dumps(line) for line in records]
    (path / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return path


def test_a_hugging_face_image_folder(tmp_path: Path) -> None:
    path = folder(
        tmp_path / "hf",
        {"file_name": "train/1.png", "text": " one\u2028line ", "caption": "not this"},
        {"file_name": "train/0.png", "caption": "nought"},
    )
    for where in (path, path / "metadata.jsonl"):
        source = SOURCES["jsonl"](DataSection(kind="jsonl", path=str(where), resolution=32))
        assert [source.caption(i, 0) for i in range(len(source))] == ["one\u2028line", "nought"]
        assert tuple(source.image(0)[3, 3]) == (1, 20, 30) and source.image(0).shape == (32, 32, 3)
    with pytest.raises(ValueError, match=r"line 2 has no caption in 'text'; .* \['file_name', 'caption'\]"):
        SOURCES["jsonl"](DataSection(kind="jsonl", path=str(path), caption_column="text"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is no JSON"),
        ('["a"]', "line 2 has no file_name"),
        ({"text": "a"}, "line 2 has no file_name"),
        ({"file_name": "train/0.png", "text": 3}, "line 2 has no caption in 'text' or 'caption'"),
    ],
)
def test_a_bad_line_of_metadata_is_named(tmp_path: Path, line: object, message: str) -> None:
    path = folder(tmp_path / "hf", {"file_name": "train/1.png", "text": "fine"}, line)
    with pytest.raises(ValueError, match=message) as caught:
        SOURCES["jsonl"](DataSection(kind="jsonl", path=str(path)))
    assert str(path / "metadata.jsonl") in str(caught.value)


def test_a_folder_without_metadata_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no metadata\.jsonl at .*hf/metadata\.jsonl"):
        (tmp_path / "hf").mkdir()
        SOURCES["jsonl"](DataSection(kind="jsonl", path=str(tmp_path / "hf")))


@pytest.mark.parametrize("kind", ["tsv", "folder", "jsonl"])
def test_a_text_that_is_not_utf8_is_named(tmp_path: Path, kind: str) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    line = {"tsv": "a.png\tcafé", "folder": "café", "jsonl": '{"file_name": "a.png", "text": "café"}'}[kind]
    name = {"tsv": "captions.tsv", "folder": "a.txt", "jsonl": "metadata.jsonl"}[kind]
    (tmp_path / name).write_bytes(line.encode("latin-1"))
    path = tmp_path if kind == "folder" else tmp_path / name
    with pytest.raises(ValueError, match=rf"{name} is not UTF-8 text .*; save it as UTF-8"):
        SOURCES[kind](DataSection(kind=kind, path=str(path)))  # type: ignore[arg-type]


def test_the_shape_of_a_picture_is_told_by_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(tmp_path / "hf", {"file_name": "train/1.png", "text": "one"})
    source = SOURCES["jsonl"](DataSection(kind="jsonl", path=str(path), resolution=32))
    monkeypatch.setattr(PngImageFile, "load", lambda self: pytest.fail("the picture was decoded"))
    assert source.shape(0) == ((40, 40), (32, 32))


def test_a_caption_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = folder(tmp_path / "hf", '{"file_name": "train/1.png", "text": "a red \\ud83d circle"}')
    with pytest.raises(ValueError, match=r"metadata\.jsonl line 1 has a caption that is no text"):
        SOURCES["jsonl"](DataSection(kind="jsonl", path=str(path)))


def test_captions_of_several_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One text, the first line, or one of them an epoch: the same for a seed, each in its turn, blank ones never."""
    for name, caption in (("0", "a red circle\r\n\r\n  red, circle, 1girl \n"), ("1", "a square")):
        Image.new("RGB", (40, 40)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_bytes(caption.encode())

    def read(lines: str, seed: int = 0) -> list[list[str]]:
        section = DataSection(kind="folder", path=str(tmp_path), caption_lines=lines, seed=seed)  # type: ignore[arg-type]
        source = SOURCES["folder"](section)
        assert source.changing_captions == (lines == "any")
        assert [len(source.captions(i)) for i in range(2)] == [2 if lines == "any" else 1, 1]
        recipe = SimpleNamespace(steps=10**6, batch_size=8)
        assert data.heard(recipe, source, 2) == (3 if lines == "any" else 2)  # type: ignore[arg-type]
        return [[source.caption(i, epoch) for epoch in range(40)] for i in range(2)]

    whole, first, drawn = read("all"), read("first"), read("any")
    assert set(whole[0]) == {"a red circle\n\n  red, circle, 1girl"} and set(first[0]) == {"a red circle"}
    assert {*whole[1], *first[1], *drawn[1]} == {"a square"}
    assert set(drawn[0]) == {"a red circle", "red, circle, 1girl"} and 10 <= drawn[0].count("a red circle") <= 30
    assert drawn == read("any") and drawn != read("any", seed=1)
    (told,) = (line.getMessage() for line in caplog.records)
    assert told.startswith("captions of several lines: 1 of 2, each is read as one text; data.caption_lines = 'first'")
    (tmp_path / "0.txt").write_text("a red circle")
    with pytest.raises(ValueError, match=r"data\.caption_lines is 'any', but data\.kind = 'webdataset' reads"):
        DataSection(kind="webdataset", path="x.tar", caption_lines="any")
