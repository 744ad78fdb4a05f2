"""The cache of latents: several sizes, mirrored pictures, pictures held out, and what makes it anew."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lavi_bridge.training.data import SOURCES, LatentCache, Prefetch
from lavi_bridge.training.data import sources as sources_module
from lavi_bridge.training.models.vae import encode, load_vae
from lavi_bridge.training.recipe import DataSection
from PIL import Image

SHAPES = ((60, 60), (90, 50), (50, 90), (64, 61))


@pytest.fixture
def section(tmp_path: Path) -> DataSection:
    """24 pictures of noise in turn square, wide, tall and nearly square, in buckets of 32 pixels."""
    rng, lines = np.random.default_rng(0), []
    (tmp_path / "images").mkdir()
    for i in range(24):
        width, height = SHAPES[i % 4]
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(tmp_path / f"images/{i:02d}.png")
        lines.append(f"images/{i:02d}.png\ta picture of number {i}\n")
    (tmp_path / "captions.tsv").write_text("".join(lines))
    return DataSection(kind="tsv", path=str(tmp_path / "captions.tsv"), resolution=32, buckets=True, bucket_step=8)


@pytest.fixture(scope="module")
def vae(tiny: Path):
    """Its latents are made large enough to tell pictures apart."""
    vae = load_vae(tiny / "vae.safetensors")
    vae.encoder.layers[-1].weight.mul_(300)
    return vae


def latents_of(section: DataSection, vae, index: int, mirrored: bool = False) -> torch.Tensor:
    image = SOURCES[section.kind](section).image(index)  # type: ignore[attr-defined]
    pixels = torch.tensor(image[:, ::-1].copy() if mirrored else image).permute(2, 0, 1)[None].float() / 127.5 - 1
    return encode(vae, pixels).half().float()


def test_a_picture_keeps_its_own_bucket_in_one_file_of_several_sizes(
    section: DataSection, vae, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources_module, "SHARD", 10)
    for _ in range(2):  # encoded, then from disk
        cache = LatentCache(SOURCES["tsv"](section), vae, tmp_path / "cache")
        assert cache.sizes == [(3, 5), (4, 4), (5, 3)] and len(cache) == 24
        assert [bucket.tolist() for bucket in cache.buckets()] == [
            list(range(1, 24, 4)),
            sorted([*range(0, 24, 4), *range(3, 24, 4)]),
            list(range(2, 24, 4)),
        ]
        for index in range(24):
            found, captions = cache.batch([index], [0])
            assert captions == [f"a picture of number {index}"]
            assert torch.allclose(found, latents_of(section, vae, index), atol=2e-3), index
        assert [len(bucket) for bucket in cache.buckets(torch.arange(4))] == [1, 2, 1]
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_batches_by_the_order_stack_and_cover_what_they_are_given(section: DataSection, vae, tmp_path: Path) -> None:
    cache = LatentCache(SOURCES["tsv"](section), vae, tmp_path / "cache")
    training, held = cache.split(5, seed=1)
    assert len(held) == 5 and sorted([*training.tolist(), *held.tolist()]) == list(range(24))
    order, seen = cache.order(3, 0, training), set()
    with Prefetch(lambda step: (order.batch(step), cache.batch(*order.batch(step))), 0) as ahead:  # another thread
        for _ in range(100):
            (indices, _), (latents, captions) = next(ahead)
            assert latents.shape[0] == 3 and tuple(latents.shape[-2:]) in cache.sizes
            assert captions == [f"a picture of number {i}" for i in indices]
            seen |= set(indices)
    assert seen == set(training.tolist())


@pytest.mark.parametrize("kind", ["tsv", "folder", "jsonl"])
def test_data_that_was_moved_holds_out_the_same(kind: str, section: DataSection, vae, tmp_path: Path) -> None:
    lines = [line.split("\t") for line in Path(section.path).read_text().splitlines()]
    for file, caption in lines:
        (tmp_path / file).with_suffix(".txt").write_text(caption)
    records = [json.dumps({"file_name": file, "text": caption}) for file, caption in lines]
    (tmp_path / "metadata.jsonl").write_text("\n".join(records))

    def held(root: Path) -> list[int]:
        path = {"tsv": root / "captions.tsv", "folder": root / "images", "jsonl": root}[kind]
        source = SOURCES[kind](replace(section, kind=kind, path=str(path)))
        return LatentCache(source, vae, tmp_path / "cache").split(6, seed=1)[1].tolist()

    before = held(tmp_path)
    assert len(before) == 6
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("images", "captions.tsv", "metadata.jsonl"):
        (tmp_path / name).rename(moved / name)
    assert held(moved) == before


def test_other_pictures_of_the_same_names_sizes_and_times_are_encoded(
    section: DataSection, vae, tmp_path: Path
) -> None:
    """As archives unpack them whose times were taken away."""
    found = []
    for colour in ("red", "blue"):
        (tmp_path / colour).mkdir()
        for i in range(2):
            path = tmp_path / colour / f"{i}.bmp"
            Image.new("RGB", (32, 32), colour).save(path)
            path.with_suffix(".txt").write_text(colour)
            os.utime(path, (10**9, 10**9))
        source = SOURCES["folder"](replace(section, kind="folder", path=str(tmp_path / colour), buckets=False))
        found.append(LatentCache(source, vae, tmp_path / "cache").batch([0, 1], [0, 0])[0])
    assert not torch.allclose(found[0], found[1])


def test_what_is_held_out_stays_when_pictures_are_added(section: DataSection, vae, tmp_path: Path) -> None:
    def held(cache: LatentCache) -> set[str]:
        return {cache.name(i) for i in cache.split(4, seed=1)[1].tolist()}

    before = held(LatentCache(SOURCES["tsv"](section), vae, tmp_path / "cache"))
    with Path(section.path).open("a") as table:
        for i in range(4):
            Image.new("RGB", (60, 60), (i, 0, 0)).save(tmp_path / f"images/more{i}.png")
            table.write(f"images/more{i}.png\tmore\n")
    added = {str(tmp_path / f"images/more{i}.png") for i in range(4)}
    cache = LatentCache(SOURCES["tsv"](section), vae, tmp_path / "cache")
    assert len(cache) == 28 and len(before) == len(held(cache)) == 4
    assert held(cache) - before <= added  # new names may come before old ones; no old one takes the place of another
    texts = cache.texts(cache.split(4, seed=1)[0])
    assert len(texts) == 24 and cache.texts() is cache.source
    assert {texts.caption(i, 0) for i in range(24)} == {cache.caption(int(i), 0) for i in cache.split(4, seed=1)[0]}
    with pytest.raises(ValueError, match=r"data\.validation holds out 28 of 28 pictures"):
        cache.split(28, seed=1)


def test_only_the_shard_that_changed_is_encoded_anew(
    section: DataSection, vae, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources_module, "SHARD", 10)
    LatentCache(SOURCES["tsv"](section), vae, tmp_path / "cache")
    first = set((tmp_path / "cache").iterdir())
    Image.new("RGB", (60, 60), (250, 0, 0)).save(tmp_path / "images/23.png")
    LatentCache(SOURCES["tsv"](section), vae, tmp_path / "cache")
    assert len(set((tmp_path / "cache").iterdir()) - first) == 1
    os.utime(tmp_path / "images/05.png", (1, 1))  # as large as before
    LatentCache(SOURCES["tsv"](section), vae, tmp_path / "cache")
    assert len(set((tmp_path / "cache").iterdir()) - first) == 2


@pytest.mark.parametrize(
    "change", [{"buckets": False}, {"bucket_step": 16}, {"bucket_ratio": 1.2}, {"flip": True}, {"resolution": 40}]
)
def test_no_setting_takes_what_another_made(section: DataSection, vae, tmp_path: Path, change: dict) -> None:
    LatentCache(SOURCES["tsv"](section), vae, tmp_path / "cache")
    (old,) = (tmp_path / "cache").iterdir()
    LatentCache(SOURCES["tsv"](replace(section, **change)), vae, tmp_path / "cache")
    assert len(set((tmp_path / "cache").iterdir()) - {old}) == 1


def test_no_vae_and_no_precision_takes_what_another_made(section: DataSection, vae, tiny: Path, tmp_path: Path) -> None:
    other = load_vae(tiny / "vae.safetensors")
    other.encoder.layers[-1].weight.neg_()
    made = []
    for encoder, precision in ((vae, "fp32"), (other, "fp32"), (vae, "bf16"), (vae, "fp32")):
        LatentCache(SOURCES["tsv"](section), encoder, tmp_path / "cache", precision=precision)
        made.append(len(list((tmp_path / "cache").iterdir())))
    assert made == [1, 2, 3, 3]


def test_half_of_the_pictures_are_mirrored_and_the_same_ones_when_asked_again(
    section: DataSection, vae, tmp_path: Path
) -> None:
    section = replace(section, flip=True)
    cache = LatentCache(SOURCES["tsv"](section), vae, tmp_path / "cache")
    mirrored = []
    for index in range(24):
        for epoch in range(4):
            found = cache.batch([index], [epoch])[0]
            distance = [(found - latents_of(section, vae, index, side)).abs().max() for side in (False, True)]
            assert min(distance) < 2e-3 < 0.02 < max(distance)
            mirrored.append(distance[1] < distance[0])
    assert 30 < sum(mirrored) < 66  # of 96: four standard deviations are 20
    each = [sum(mirrored[i : i + 4]) for i in range(0, 96, 4)]
    assert sum(0 < count < 4 for count in each) > 0  # drawn anew each epoch
    again = LatentCache(SOURCES["tsv"](section), vae, tmp_path / "cache")
    assert torch.equal(again.batch([7], [3])[0], cache.batch([7], [3])[0])
    other = LatentCache(SOURCES["tsv"](replace(section, seed=1)), vae, tmp_path / "cache")
    assert any(not torch.equal(other.batch([i], [0])[0], cache.batch([i], [0])[0]) for i in range(24))


def test_mirroring_captions_that_tell_left_from_right_is_warned_of(
    section: DataSection, vae, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    LatentCache(SOURCES["tsv"](replace(section, flip=True)), vae, tmp_path / "cache")
    assert "mirrors" not in caplog.text  # none of these captions does
    table = Path(section.path)
    table.write_text(table.read_text().replace("number 3\n", "a dog LEFT of a cat\n").replace("number 4\n", "bright\n"))
    LatentCache(SOURCES["tsv"](replace(section)), vae, tmp_path / "cache")
    assert "mirrors" not in caplog.text
    LatentCache(SOURCES["tsv"](replace(section, flip=True)), vae, tmp_path / "cache")
    assert (
        "data.flip mirrors pictures, but 1 of 24 captions tell left from right, such as 'a picture of a dog LEFT"
        in (caplog.text)
    )


TWO_PROCESSES = """
import json, os, pathlib, sys
tests, table, vae_file, folder, report, port = json.loads(sys.argv[1])
sys.path.insert(0, tests)
import conftest
from accelerate import Accelerator
from lavi_bridge.training.data import SOURCES, LatentCache, sources
from lavi_bridge.training.recipe import DataSection
from lavi_bridge.training.models.vae import load_vae
from torch.multiprocessing import start_processes

vae = load_vae(vae_file)  # before the fork: what it imports costs seconds

def work(rank):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    os.environ.update(MASTER_PORT=port, ACCELERATE_USE_CPU="true")
    accelerator = Accelerator(cpu=True)
    sources.SHARD, read, asked = 3, sources.IndexedSource._read, []
    sources.IndexedSource._read = lambda self, part: (asked.append(part.start), read(self, part))[1]
    answers = []
    for attempt in range(3):
        if attempt == 2:  # too many now, all of them process 1's to find
            for i in (3, 5):
                pathlib.Path(table).parent.joinpath(f"images/{i:02d}.png").write_bytes(b"no picture at all")
            accelerator.wait_for_everyone()
        asked.clear()
        source = SOURCES["tsv"](DataSection(kind="tsv", path=table, resolution=32))
        try:
            cache = LatentCache(source, vae, folder, report, accelerator=accelerator)
            latents, captions = cache.batch(range(40), [0] * 40)
            answers.append([list(asked), len(cache), float(latents.abs().sum()), captions])
        except ValueError as error:
            answers.append([list(asked), str(error)])
    pathlib.Path(f"{folder}-{rank}.json").write_text(json.dumps(answers))
    accelerator.end_training()

start_processes(work, nprocs=2, start_method="fork")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forked")
def test_two_processes_share_the_work_the_report_and_an_error(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    lines = []
    for i in range(42):
        Image.new("RGB", (40, 40), (i, 99, 5 * i)).save(tmp_path / f"images/{i:02d}.png")
        lines.append(f"images/{i:02d}.png\tpicture {i}\n")
    for i in (4, 37):  # in shard 1, which is process 1's, and in shard 12, which is process 0's
        (tmp_path / f"images/{i:02d}.png").write_bytes(b"no picture")
    table = tmp_path / "captions.tsv"
    table.write_text("".join(lines))
    alone = LatentCache(
        SOURCES["tsv"](DataSection(kind="tsv", path=str(table), resolution=32)),
        load_vae(tiny / "vae.safetensors"),
        tmp_path / "alone",
    )
    latents, captions = alone.batch(range(40), [0] * 40)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    paths = (Path(__file__).parents[2], table, tiny / "vae.safetensors", tmp_path / "cache", tmp_path / "bad.txt")
    program = [sys.executable, "-c", TWO_PROCESSES, json.dumps([*map(str, paths), port])]
    result = subprocess.run(program, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-3000:]
    answers = [json.loads((tmp_path / f"cache-{rank}.json").read_text()) for rank in range(2)]
    for rank, (first, second, third) in enumerate(answers):
        assert first[0] == list(range(3 * rank, 42, 6)) and second[0] == []  # its own shards, and none twice
        for _, count, total, said in (first, second):
            assert (count, said) == (40, captions) and total == pytest.approx(float(latents.abs().sum()), rel=1e-3)
        assert third[0] == ([] if rank == 0 else [3]) and "more than 5%" in third[1]
    assert len({answer[2][1] for answer in answers}) == 1
    assert len(list((tmp_path / "cache").glob("latents-*.safetensors"))) == 14
    listed = (tmp_path / "bad.txt").read_text().splitlines()
    assert [next(i for i in range(42) if f"{i:02d}.png" in line) for line in listed] == [4, 37]
