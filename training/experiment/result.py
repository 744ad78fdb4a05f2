"""The result of one trained and judged bridge: a small JSON file beside its run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...lavi_core.config import from_dict
from ...lavi_core.files import write_text

NAME = "result.json"
STRIP = "pictures.png"


@dataclass(frozen=True, kw_only=True)
class Result:
    """correct: category -> 1 or 0 a prompt, in the order of ``shapebench.prompts``. aspects: category -> means, see
    ``shapebench.score``. distance: see ``reference.py``. trained: parameters of each group. seconds: of training, with
    the head start; cpu_seconds: what the process computed in them, which other work on the machine does not change."""

    row: str
    seed: int
    settings: dict[str, Any]
    correct: dict[str, tuple[int, ...]]
    aspects: dict[str, dict[str, Any]]
    distance: float
    trained: dict[str, int]
    steps: int
    batch_size: int
    seconds: float
    loss: float | None
    environment: dict[str, Any]
    cpu_seconds: float = 0.0

    def save(self, folder: Path) -> None:
        write_text(folder / NAME, json.dumps(asdict(self)))

    @classmethod
    def load(cls, folder: Path) -> Result:
        try:
            return from_dict(cls, json.loads((folder / NAME).read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{folder / NAME} is no result of an experiment: {error}") from None
