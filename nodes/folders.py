"""The registered model folders: names in a graph are resolved inside them and nowhere else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import folder_paths

BRIDGES = "lavi_bridges"
BRIDGE_FILES: tuple[str, ...] = (".safetensors",)
# Where Load Bridge looks: besides its own, the folders in which other projects' node packs keep their adapters.
ADAPTERS = (BRIDGES, "ella", "llm_adapters")
ADAPTER_FILES: tuple[str, ...] = (*BRIDGE_FILES, ".pt", ".pth", ".bin", ".gguf")
LANGUAGE = ("LLM", "llm", "text_encoders", "ella_encoder")  # the last: ComfyUI-ELLA's folder of FLAN-T5-XL
LORAS = ("loras", "LLM", "llm")
VISION = ("diffusers", "diffusion_models")
DEMO = {"lavi_demo": "install_demo.py", "SmolLM2-135M-Instruct.Q4_1": "install_demo.py --smollm2"}
NONE_FOUND = "(none found)"
DEPTH = 4  # folders below a root that are looked into


def register() -> None:
    """Add our model folders to the host's table; paths that ``extra_model_paths.yaml`` gave stay, and stay first."""
    for kind in ("LLM", "llm", "ella_encoder", *ADAPTERS):
        own = str(Path(folder_paths.models_dir) / kind)
        suffixes = set(folder_paths.supported_pt_extensions) if kind in ADAPTERS else set()
        paths, extensions = folder_paths.folder_names_and_paths.get(kind, ([], suffixes))
        if own not in paths:
            paths = [*paths, own]
        if kind == BRIDGES:
            extensions = set(BRIDGE_FILES)
        folder_paths.folder_names_and_paths[kind] = (paths, extensions)


def roots(*kinds: str) -> list[Path]:
    """The existing folders of these kinds, each once, in the host's order."""
    found: dict[Path, Path] = {}
    for kind in kinds:
        for text in folder_paths.get_folder_paths(kind):
            path = Path(text)
            if path.is_dir():
                found.setdefault(path.resolve(), path)
    return list(found.values())


def names(*kinds: str, folder: Callable[[Path], bool] | None = None, suffixes: tuple[str, ...] = ()) -> list[str]:
    """Names, relative to their root, of the folders that ``folder`` accepts (they are not entered) and of files."""
    found = {path.relative_to(root).as_posix() for root in roots(*kinds) for path in _walk(root, folder, suffixes)}
    return sorted(found) or [NONE_FOUND]


def _walk(
    root: Path, folder: Callable[[Path], bool] | None, suffixes: tuple[str, ...], depth: int = DEPTH
) -> Iterator[Path]:
    try:
        entries = [entry for entry in os.scandir(root) if not entry.name.startswith(".")]
    except OSError:
        return
    for entry in entries:
        if not entry.is_dir():
            if entry.name.lower().endswith(suffixes):
                yield Path(entry.path)
        elif folder is not None and folder(Path(entry.path)):
            yield Path(entry.path)
        elif depth:
            yield from _walk(Path(entry.path), folder, suffixes, depth - 1)


def resolve(what: str, name: str, *kinds: str) -> Path:
    """The path of ``name`` in the first root that has it. A name that leaves the roots is refused."""
    if name == NONE_FOUND:
        raise ValueError(f"there is no {what} yet: put one into {places(*kinds)}, then refresh the page")
    windows = PureWindowsPath(name)
    if not name or windows.is_absolute() or windows.drive or windows.root or ".." in windows.parts or "\0" in name:
        raise ValueError(f"{name!r} is no name of a {what}: it must lie inside {places(*kinds)}")
    for root in roots(*kinds):
        path = root / PurePosixPath(name.replace("\\", "/"))
        if os.path.exists(path):  # noqa: PTH110  (it says no of a name that is too long, where Path.exists raises)
            return path
    missing = f"there is no {what} {name!r} in {places(*kinds)}"
    command = next((command for begins, command in DEMO.items() if name.startswith(begins)), None)
    if command is not None:
        raise ValueError(f"{missing}: it is of the demo, and python {command}, in this pack's folder, brings it")
    made = ", train it or import it," if what == "bridge" else ""
    raise ValueError(f"{missing}: put it there{made} or choose another")


def problem(what: str, name: str | None, *kinds: str) -> bool | str:
    """``True``, or one sentence that says why ``name`` cannot be used: what ``validate_inputs`` returns."""
    if name is None:
        return True  # the name comes from a wire: known only when the graph runs
    try:
        resolve(what, name, *kinds)
    except ValueError as error:
        return str(error)
    return True


def stamp(what: str, name: str | None, *kinds: str) -> str:
    """Changes when the file, a file in the folder of its name beside it, which may have its config and tokenizer, or a
    file in the folder or one level below, changes on disk: a node's cache key."""
    return "" if name is None else stamp_of(resolve(what, name, *kinds))


def stamp_of(path: Path) -> str:
    """The same of a path."""
    beside = path.with_suffix("").glob("*")
    files = [path, *beside] if path.is_file() else [file for pattern in ("*", "*/*") for file in path.glob(pattern)]
    stats = sorted((file.as_posix(), file.stat().st_mtime_ns, file.stat().st_size) for file in files if file.is_file())
    return json.dumps(stats)


def host_tokenizers() -> dict[str, Path]:
    """The tokenizers that the host ships, by the names that the core has for them."""
    here = Path(folder_paths.__file__).parent / "comfy"
    found = {"clip": here / "sd1_tokenizer", "t5": here / "text_encoders" / "t5_tokenizer"}
    return {name: folder for name, folder in found.items() if folder.is_dir()}


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a small file; ``{}`` when it cannot be read as one (to look at folders, not to load them)."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def places(*kinds: str) -> str:
    """Their folders, for a message: those that exist, else those that are looked for."""
    paths = roots(*kinds) or [path for kind in kinds for path in folder_paths.get_folder_paths(kind)]
    return " or ".join(os.fspath(path) for path in paths)
