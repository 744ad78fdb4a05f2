"""Every pair of the paper at its true size, with random weights: does it import, encode, sample in ComfyUI and train?

    python tests/benchmarks/pairs.py --work FOLDER [PAIR ...]

Prints a Markdown table of seconds and of the peak resident memory of the process that did it. The models are written
to FOLDER (about 30 GB for all pairs) and found there again; "not run" and why, where a step did not end well.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(Path(__file__).parent)]

import as_package  # noqa: E402, F401  (registers the checkout as lavi_bridge)
import torch  # noqa: E402
import true_sizes  # noqa: E402
from lavi_bridge.lavi_core import adapters  # noqa: E402
from lavi_bridge.lavi_core.config import AdapterConfig  # noqa: E402
from lavi_bridge.lavi_core.importers.module_order import LANGUAGE_ORDERS, VISION_ORDERS, in_order  # noqa: E402
from lavi_bridge.lavi_core.language import TextEncoder  # noqa: E402
from lavi_bridge.lavi_core.lora import shapes  # noqa: E402
from lavi_bridge.lavi_core.vision import target_of  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

PROMPTS = ("a red circle left of a blue square", "two elephants in the forest")
SAMPLING_STEPS = 2
RANK = 32
SIZE = 256
SAMPLED_SIZE = 320  # ComfyUI's PixArt needs more than 32 latent cells a side


@dataclass
class Pair:
    """One row: the models' names in ``true_sizes`` and the recipe that trains them."""

    language: str
    vision: str
    cells: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.language}-{self.vision}"

    @property
    def recipe(self) -> Path:
        return ROOT / "training" / "recipes" / "paper" / f"{self.name}.toml"


PAIRS = [
    *(Pair(language, "sd14") for language in true_sizes.LANGUAGE),
    *(Pair("t5-large", vision) for vision in ("ldm", "pixart", "sdxl")),
]
COLUMNS = {
    "imports": "imports",
    "encodes": "encodes 2 prompts",
    "streamed": "the same, streamed",
    "samples": f"samples in ComfyUI ({SAMPLING_STEPS} steps, {SAMPLED_SIZE} pixels)",
    "trains": f"trains a step ({SIZE} pixels, batch 1)",
}


class Workshop:
    """The folder with the models, and the commands that are timed there."""

    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)

    def language(self, pair: Pair) -> Path:
        folder = self.folder / "language" / pair.language
        return _once(folder, lambda part: true_sizes.write_language(pair.language, part))

    def vision(self, pair: Pair) -> Path:
        folder = self.folder / "vision" / pair.vision
        return _once(folder, lambda part: true_sizes.write_vision(pair.vision, part))

    def bridge(self, pair: Pair) -> Path:
        return self.folder / f"{pair.name}.safetensors"

    def imports(self, pair: Pair) -> str:
        if pair.vision == "sdxl":
            return "not published"
        released = _once(self.folder / "released" / pair.name, lambda part: write_released(pair, self, part))
        models = ["--language-model", self.language(pair), "--vision-model", self.vision(pair)]
        return command("import", released, *models, "-o", self.bridge(pair))

    def encodes(self, pair: Pair, *options: str) -> str:
        prompts = self.folder / "prompts.txt"
        prompts.write_text("\n".join(PROMPTS) + "\n")
        out = self.folder / "encoded.safetensors"
        models = ["--language-model", self.language(pair), "--precision", "bf16", "--prompts", prompts]
        return command("encode", self.bridge(pair), *models, "-o", out, *options)

    def streamed(self, pair: Pair) -> str:
        return self.encodes(pair, "--stream")

    def samples(self, pair: Pair) -> str:
        from comfy_pair import sample

        return sample(self, pair, PROMPTS, SAMPLING_STEPS, SAMPLED_SIZE)

    def trains(self, pair: Pair) -> str:
        data, run = self.folder / "data", self.folder / "runs" / pair.name
        write_data(data)
        shutil.rmtree(run, ignore_errors=True)
        values = {
            "output": run,
            "steps": 1,
            "batch_size": 1,
            "save_every": 1,
            "precision": "bf16",
            "gradient_checkpointing": "true",
            "language.model": self.language(pair),
            "vision.model": self.vision(pair),
            "vision.vae": self.vision(pair) / "vae",
            "data.kind": "folder",
            "data.path": data,
            "data.resolution": SIZE,
            "sample.every": 0,
        }
        changes = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
        cell = command("train", pair.recipe, *changes)
        made = run / "bridge.safetensors"
        if made.is_file() and not self.bridge(pair).is_file():
            made.replace(self.bridge(pair))
        return cell


def _once(folder: Path, make: Any) -> Path:
    """Made in a process of its own: the kernel counts the memory of the one that starts a command as the command's."""
    if not folder.is_dir():
        print(f"writing {folder}", file=sys.stderr)
        part = folder.with_name(f".{folder.name}.part")
        maker = multiprocessing.get_context("fork").Process(target=make, args=(part,))
        maker.start()
        maker.join()
        if maker.exitcode:
            raise SystemExit(f"{folder} could not be written")
        part.rename(folder)
    return folder


def command(*parts: Any) -> str:
    """Run ``lavi-bridge`` in a process of its own; seconds and peak memory, or why it did not end well."""
    begun = time.monotonic()
    words = [sys.executable, "-m", "lavi_bridge.training.commands", *map(str, parts)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)  # Popen's own wait does not tell the memory
    process.returncode = os.waitstatus_to_exitcode(status)
    peak = gigabytes(usage.ru_maxrss)
    if process.returncode:
        why = said.strip().rpartition("\n")[2] if process.returncode > 0 else f"killed by signal {-process.returncode}"
        return f"not run: {why} (peak {peak})"
    return f"{time.monotonic() - begun:.0f} s, {peak}"


def gigabytes(kilobytes: int) -> str:
    return f"{kilobytes / (1 << 20):.1f} GB"


def write_data(folder: Path) -> None:
    from PIL import Image

    folder.mkdir(exist_ok=True)
    noise = torch.randint(0, 256, (SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(noise.numpy()).save(folder / "one.png")
    (folder / "one.txt").write_text(PROMPTS[0])


def write_released(pair: Pair, workshop: Workshop, folder: Path) -> None:
    """Random half-precision weights in the layout of the authors' checkpoints (``lavi_core.importers.released``)."""
    import diffusers

    encoder = TextEncoder.skeleton(workshop.language(pair))
    config = true_sizes.VISION[pair.vision]
    with torch.device("meta"):
        network = getattr(diffusers, config["_class_name"]).from_config(config)
    row = target_of(config)
    in_width, out_width = encoder.config.hidden_size, row.context_width(config)
    widths = {"in_width": in_width, "inner_width": adapters.inner_width(in_width, out_width), "out_width": out_width}
    adapter = adapters.build(AdapterConfig(kind="mlp", **widths))
    (folder / "adapter").mkdir(parents=True)
    save_file(adapter.half().state_dict(), folder / "adapter" / "diffusion_pytorch_model.safetensors")
    lists = {
        "lora_text.pt": (encoder.model, in_order(encoder.lora_sites(), LANGUAGE_ORDERS[encoder.family.name])),
        "lora_vis.pt": (network, in_order(row.sites(network), VISION_ORDERS[row.diffusers_class])),
    }
    for name, (model, paths) in lists.items():
        tensors = []
        for path in paths:
            down, up = shapes(model.get_submodule(path), RANK)
            tensors += [torch.randn(shape, dtype=torch.float16).mul_(0.02) for shape in (up, down)]
        torch.save(tensors, folder / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="*", choices=[[], *(pair.name for pair in PAIRS)], help="default: all")
    parser.add_argument("--work", type=Path, required=True, help="folder for the models")
    parser.add_argument("--columns", nargs="+", choices=list(COLUMNS), default=list(COLUMNS))
    args = parser.parse_args()
    workshop = Workshop(args.work)
    record = workshop.folder / "pairs.json"  # a row that was measured stays, so that the command can be stopped
    known: dict[str, dict[str, str]] = json.loads(record.read_text()) if record.is_file() else {}
    chosen = [pair for pair in PAIRS if not args.pairs or pair.name in args.pairs]
    for pair in chosen:
        # Where no bridge is published, training makes the one that the other columns read.
        for column in sorted(args.columns, key=lambda c: c != "trains") if pair.vision == "sdxl" else args.columns:
            print(f"{pair.name}: {column}", file=sys.stderr)
            known.setdefault(pair.name, {})[column] = getattr(workshop, column)(pair)
            record.write_text(json.dumps(known, indent=1))
    print("| pair | " + " | ".join(COLUMNS.values()) + " |")
    print("|---" * (len(COLUMNS) + 1) + "|")
    for pair in PAIRS:
        cells = known.get(pair.name, {})
        print(f"| {pair.name} | " + " | ".join(cells.get(column, "") for column in COLUMNS) + " |")


if __name__ == "__main__":
    main()
