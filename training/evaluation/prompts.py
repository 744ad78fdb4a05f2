"""The prompts of an evaluation, from the files that benchmarks come in."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...lavi_core.registry import Registry

# T2I-CompBench's own files (arXiv 2307.06350, examples/dataset) say the category by their name.
COMPBENCH = re.compile(r"(color|shape|texture|spatial|non_spatial|complex)_val(?:_(spatial|action|spatialaction))?")


@dataclass(frozen=True)
class Prompt:
    """meta: what else the file says of it, kept in the manifest as it is."""

    text: str
    category: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)


def read_prompts(files: Sequence[str | Path], category: str = "") -> list[Prompt]:
    """All prompts of the files, in order.

    .txt: one a line, up to a tab; T2I-CompBench's file names tell the category, else it is ``category``.
    .tsv: ``prompt<TAB>category``, the category may be missing. .jsonl: an object a line with "prompt" and, as the
    category, "category" or GenEval's "tag". Empty lines are skipped. Raises ValueError, with file and line, for
    anything else, and where there is no prompt at all.
    """
    found = [prompt for name in files for prompt in _read(Path(name), category)]
    if not found:
        raise ValueError(f"no prompt in {', '.join(map(str, files))}; give one a line")
    return found


def _read(path: Path, category: str) -> list[Prompt]:
    if not path.is_file():
        raise ValueError(f"there is no file of prompts {path}")
    parse = FORMATS[path.suffix.lower()]
    found = []
    try:
        with path.open(encoding="utf-8-sig", newline=None) as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    found.append(parse(line.rstrip("\n"), path, category))
                except ValueError as error:
                    raise ValueError(f"{path} line {number}: {error}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error})") from None
    return found


def _text(line: str, path: Path, category: str) -> Prompt:
    text = _named(line.partition("\t")[0])
    known = COMPBENCH.fullmatch(path.stem)
    if known is None:
        return Prompt(text, category)
    return Prompt(text, known[1], {"complex": known[2]} if known[2] else {})


def _table(line: str, path: Path, category: str) -> Prompt:
    text, *more = line.split("\t")
    if len(more) > 1:
        raise ValueError(f"it has {len(more) + 1} columns; prompt and category are 2")
    return Prompt(_named(text), (more[0].strip() if more else "") or category)


def _object(line: str, path: Path, category: str) -> Prompt:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise ValueError(f"it is not readable as JSON ({error})") from None
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
        raise ValueError(f'it is no object with a text "prompt": {line[:80]}')
    meta = {key: value for key, value in entry.items() if key not in ("prompt", "category")}
    return Prompt(_named(entry["prompt"]), str(entry.get("category") or entry.get("tag") or category), meta)


def _named(text: str) -> str:
    if not text.strip():
        raise ValueError("the prompt is empty")
    return text.strip()


FORMATS: Registry[Callable[[str, Path, str], Prompt]] = Registry(
    "kind of prompt file", {".txt": _text, ".tsv": _table, ".jsonl": _object}
)
