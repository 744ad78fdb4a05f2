"""``lavi-bridge evaluate suite``: generate, score and table of many bridges, as one TOML file says."""

from __future__ import annotations

import argparse
import logging
import re
import tomllib
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...lavi_core.config import from_dict
from ...lavi_core.files import write_text
from ..models import named
from .generate import generate
from .metrics import METRICS
from .own_encoder import write_own
from .paper_figures import PAPER
from .samplers import SAMPLERS
from .score import score
from .table import of_runs

log = logging.getLogger(__name__)
OWN = "own"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A column of the table. bridge: a file, or "own" for the vision model's own text encoder, which language_model
    then need not name. vae: empty = the one in the vision model's folder. own_encoder: of a bridge with two ears, its
    folder; empty = the vision model's."""

    name: str
    bridge: str
    vision_model: str
    language_model: str = ""
    vae: str = ""
    own_encoder: str = ""

    def __post_init__(self) -> None:
        if not self.language_model and self.bridge != OWN:
            raise ValueError(f'bridge {self.name} names no language_model; only bridge = "{OWN}" can do without')

    @property
    def folder(self) -> str:
        """Of its run; the paper's columns have slashes in their names."""
        return re.sub(r"[/\\:]", "-", self.name.strip())


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What the options of generate, score and table are called, but for size: 0 = the vision model's own. Paths are
    from where the command is given. paper: which of the paper's tables the bridges stand beside."""

    prompts: tuple[str, ...]
    bridge: tuple[Entry, ...]
    paper: str = "language"
    seeds: tuple[int | str, ...] = (42,)
    sampler: str = "unipc"
    steps: int = 50
    guidance: float = 7.5
    quality_suffix: bool = False
    negative: str = ""
    size: int = 0
    batch_size: int = 8
    precision: Literal["fp32", "bf16"] = "fp32"
    weights: str | None = None
    reference: str | None = None
    metrics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        PAPER[self.paper]
        SAMPLERS[self.sampler]
        for metric in self.metrics:
            METRICS[metric]
        names, folders = [entry.name for entry in self.bridge], {entry.folder for entry in self.bridge}
        if not names or len(folders) < len(names) or folders & {"", ".", ".."}:
            raise ValueError(f"a suite's bridges have names of their own, which can be folders; got {', '.join(names)}")


def read_suite(path: str | Path) -> Suite:
    """Raises ValueError naming the file and the key for anything that does not fit."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no suite at {path}")
    try:
        return from_dict(Suite, tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def suite(args: argparse.Namespace) -> str:
    """Draw and score what ``args.work`` lacks, bridge by bridge, a run folder each; write table.md there and return
    its text. The same command goes on after a kill."""
    asked, work = read_suite(args.suite), Path(args.work)
    if lacking := missing(asked):
        raise ValueError(
            f"{args.suite} needs what is not there: {', '.join(lacking)}; put it there (`lavi-bridge evaluate "
            "prompts -o FILE` writes ShapeBench's prompts), or name another"
        )
    runs = {entry.name: work / entry.folder for entry in asked.bridge}
    for entry in asked.bridge:
        run = runs[entry.name]
        log.info(generate(_drawing(asked, entry, run, args.device)))
        log.info(
            score(
                Namespace(
                    folder=run,
                    metrics=asked.metrics,
                    weights=asked.weights,
                    reference=asked.reference,
                    batch_size=asked.batch_size,
                    device=args.device,
                    require=False,
                    missing=True,
                )
            )
        )
    text = of_runs(runs, asked.paper)
    write_text(work / "table.md", f"{text}\n")
    return text


def missing(asked: Suite) -> list[str]:
    """The paths of a suite where nothing is, each once."""
    found = [*asked.prompts, asked.weights, asked.reference]
    for entry in asked.bridge:
        found += [entry.bridge if entry.bridge != OWN else None, entry.vision_model, entry.language_model, entry.vae]
        found.append(entry.own_encoder)
    paths = [path for path in found if path and not path.startswith("demo:")]
    return [path for path in dict.fromkeys(paths) if not Path(path).exists()]


def _drawing(asked: Suite, entry: Entry, run: Path, device: str | None) -> Namespace:
    bridge, language = named.bridge(entry.bridge), entry.language_model
    if entry.bridge == OWN:
        vision = named.vision(entry.vision_model)
        bridge = run / "own.safetensors"
        if not bridge.is_file():  # written again it has other bytes: safetensors' header has no order
            write_own(vision, bridge)
        language = language or str(vision / "text_encoder")
    return Namespace(
        bridge=bridge,
        language_model=language,
        language_models=None,
        vision_model=entry.vision_model,
        vae=entry.vae or None,
        own_encoder=entry.own_encoder or None,
        output=run,
        prompts=asked.prompts,
        category="",
        seeds=asked.seeds,
        sampler=asked.sampler,
        steps=asked.steps,
        guidance=asked.guidance,
        quality_suffix=asked.quality_suffix,
        negative=asked.negative,
        size=asked.size or None,
        batch_size=asked.batch_size,
        precision=asked.precision,
        device=device,
    )
