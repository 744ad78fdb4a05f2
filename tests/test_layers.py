"""The layers of the tree, kept by reading every import: one way only, all relative, heavy ones inside functions."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("lavi_core", "training", "nodes")
OURS = {*LAYERS, "lavi_bridge"}
HOST = {"comfy", "comfy_api", "comfy_extras", "comfy_execution", "folder_paths", "node_helpers", "execution", "server"}
HEAVY = {"transformers", "diffusers", "peft", "accelerate", "gguf"}
FORBIDDEN = {
    "lavi_core": HOST | {"diffusers", "accelerate", "peft"},
    "training": HOST,
    "nodes": {"diffusers", "accelerate", "peft"},
}
MAY_REACH = {"lavi_core": {"lavi_core"}, "training": {"training", "lavi_core"}, "nodes": {"nodes", "lavi_core"}}


class Import(NamedTuple):
    file: Path
    line: int
    module: tuple[str, ...]  # a relative import's is resolved from the root
    relative: bool
    at_top: bool

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {'.'.join(self.module)}"


def python_files() -> list[Path]:
    return [f for layer in LAYERS for f in sorted((ROOT / layer).rglob("*.py"))]


def imports(file: Path) -> Iterator[Import]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    inside = {
        id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)
    }
    guarded = {  # `if TYPE_CHECKING:` never runs
        id(n)
        for i in ast.walk(tree)
        if isinstance(i, ast.If) and "TYPE_CHECKING" in ast.dump(i.test)
        for n in ast.walk(i)
    }
    package = file.relative_to(ROOT).parts[:-1]
    for node in ast.walk(tree):
        at_top = id(node) not in inside | guarded
        if isinstance(node, ast.Import):
            for name in node.names:
                yield Import(file, node.lineno, tuple(name.name.split(".")), False, at_top)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = (*base, *(node.module or "").split(".")) if node.module else base
            for name in node.names:
                yield Import(file, node.lineno, (*stem, name.name), node.level > 0, at_top)


ALL = [found for file in python_files() for found in imports(file)]


def test_something_is_read():
    assert len(python_files()) > 20 and len(ALL) > 100


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_no_foreign_one(layer: str):
    mine = [i for i in ALL if i.file.relative_to(ROOT).parts[0] == layer]
    wrong = [i for i in mine if not i.relative and i.module[0] in FORBIDDEN[layer]]
    wrong += [i for i in mine if i.relative and i.module[0] not in MAY_REACH[layer]]
    assert not wrong, "\n".join(map(str, wrong))


def test_imports_inside_the_tree_are_relative():
    wrong = [i for i in ALL if not i.relative and i.module[0] in OURS]
    assert not wrong, "\n".join(map(str, wrong))


def test_heavy_libraries_are_imported_where_they_are_used():
    wrong = [
        i
        for i in ALL
        if i.at_top and not i.relative and i.module[0] in HEAVY and i.file.relative_to(ROOT).parts[0] != "training"
    ]
    assert not wrong, "\n".join(map(str, wrong))


def test_the_wheel_holds_every_package():
    """A forgotten subpackage is silently absent from a wheel."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = {f.parent for f in python_files()}
    assert set(listed) == {"lavi_bridge"} | {".".join(("lavi_bridge", *f.relative_to(ROOT).parts)) for f in folders}
    assert all((f / "__init__.py").is_file() for f in folders)


def test_a_wheel_holds_the_recipes_and_the_demo(tmp_path: Path):
    """What `pip install .` copies; built from a copy, since setuptools writes into the tree that it builds."""
    tree = tmp_path / "tree"
    for layer in LAYERS:
        shutil.copytree(ROOT / layer, tree / layer, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("__init__.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    result = subprocess.run([*command, "--wheel-dir", str(tmp_path), str(tree)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        packed = {name.removeprefix("lavi_bridge/") for name in file.namelist() if name.startswith("lavi_bridge/")}
    files = {f.relative_to(tree).as_posix() for layer in LAYERS for f in (tree / layer).rglob("*") if f.is_file()}
    assert files <= packed, sorted(files - packed)
    assert {"training/recipes/demo/vision.toml", "training/demo/weights/vae.safetensors"} <= packed
