"""The file that names weights: nothing but what it says is taken."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest
from lavi_bridge.training import recipe
from lavi_bridge.training.evaluation.metric_weights import ROLES, Weights, checksum


def test_a_folders_checksum_is_what_the_documented_command_prints(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/x.txt", "a.bin", "B.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "z.bin").symlink_to("a.bin")  # as the hub's own cache has it
    command = "find -L . -type f -printf '%P\\n' | LC_ALL=C sort | xargs -d '\\n' sha256sum | sha256sum"
    printed = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert checksum(tmp_path) == printed.split()[0]
    assert checksum(tmp_path / "a.bin") == hashlib.sha256(b"a.bin").hexdigest()


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "head.pth").write_bytes(b"one")
    path = tmp_path / "w.toml"
    path.write_text(f'[aesthetic-v1]\npath = "head.pth"\nsha256 = "{hashlib.sha256(b"one").hexdigest()}"\n')
    assert Weights.read(path).get("aesthetic-v1") == tmp_path / "head.pth"
    (tmp_path / "head.pth").write_bytes(b"two")
    one, two = (hashlib.sha256(data).hexdigest() for data in (b"one", b"two"))
    with pytest.raises(ValueError, match=f"has sha256 {two}, .* says {one}"):
        Weights.read(path).get("aesthetic-v1")


def test_a_missing_checksum_is_told(tmp_path: Path) -> None:
    (tmp_path / "head.pth").write_bytes(b"one")
    (tmp_path / "w.toml").write_text('[aesthetic-v1]\npath = "head.pth"\n')
    with pytest.raises(ValueError, match="gives none: write down the one you trust"):
        Weights.read(tmp_path / "w.toml").get("aesthetic-v1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[clip-b16]\npath = "x"', "unknown role 'clip-b16'; known: clip-b32"),
        ('[clip-b32]\nfolder = "x"', "must hold path and sha256"),
        ("clip = ", "not readable as TOML"),
    ],
)
def test_other_tables_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "w.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        Weights.read(tmp_path / "w.toml")


def test_a_path_that_is_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "w.toml").write_text('[aesthetic-v1]\npath = 5\nsha256 = ""\n')
    with pytest.raises(ValueError, match="must hold path and sha256, both texts"):
        Weights.read(tmp_path / "w.toml")


def test_the_file_to_copy_names_every_role() -> None:
    path = Path(recipe.__file__).parents[1] / "recipes" / "evaluation" / "weights.toml"
    found = Weights.read(path)
    assert set(found.paths) == set(ROLES) and not any(found.sums.values())
    command = "find -L . -type f -printf '%P\\n' | LC_ALL=C sort | xargs -d '\\n' sha256sum | sha256sum"
    assert command in path.read_text()
