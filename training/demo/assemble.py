"""Collect the demo's trained models from their run folders into ``weights/``, in half precision.

``python -m lavi_bridge.training.demo.assemble [RUNS]``; whatever is there is taken: first the VAE and the vision model,
later the bridges.
"""

from __future__ import annotations

import logging
import shutil
import sys
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file

from ...lavi_core.files import write_safetensors
from ..models.named import WEIGHTS

log = logging.getLogger(__name__)
BRIDGES = {"own": "vision", "minilm": "minilm", "smollm2": "smollm2", "control": "control"}


def assemble(runs: Path, weights: Path = WEIGHTS) -> list[Path]:
    """Returns what was written, sizes logged."""
    written = []
    models = {
        "vision/unet": "diffusion_pytorch_model.safetensors",
        "vision/text_encoder": "model.safetensors",
    }
    if (runs / "vision" / "vision").is_dir():
        for folder, name in models.items():
            source, target = runs / "vision" / folder, weights / folder
            target.mkdir(parents=True, exist_ok=True)
            for file in source.glob("*.json"):
                shutil.copy(file, target / file.name)
            written.append(_halve(source / name, target / name))
        shutil.copytree(runs / "vision" / "vision" / "scheduler", weights / "vision" / "scheduler", dirs_exist_ok=True)
    files = {"vae.safetensors": runs / "vae" / "vae.safetensors"}
    files |= {f"{name}.safetensors": runs / run / "bridge.safetensors" for name, run in BRIDGES.items()}
    for name, source in files.items():
        if source.is_file():
            shutil.copy(source, weights / name)
            written.append(weights / name)
    return written


def _halve(source: Path, target: Path) -> Path:
    with safe_open(source, "pt") as file:
        metadata = file.metadata() or {}
    write_safetensors(target, {key: t.half() for key, t in load_file(source).items()}, metadata)
    return target


def main(argv: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = sys.argv[1:] if argv is None else argv
    for path in assemble(Path(arguments[0] if arguments else "runs/demo")):
        log.info("%8.2f MB  %s", path.stat().st_size / 1e6, path)


if __name__ == "__main__":
    main()
