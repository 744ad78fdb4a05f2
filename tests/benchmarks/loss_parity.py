"""Does training in bf16 follow the loss curve of float32?

    python tests/benchmarks/loss_parity.py --work FOLDER

Three runs of the demo pair, at a small batch: float32, bf16 on the same seed (start, order, noise), and float32 on
another seed. Prints the mean absolute difference of the smoothed losses of the first two, and of the two float32 runs,
which is the noise. Ends with 1 where bf16 lies outside of it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(Path(__file__).parent)]

import as_package  # noqa: E402, F401  (registers the checkout as lavi_bridge)
import numpy as np  # noqa: E402
import torch  # noqa: E402
from lavi_bridge.training.loop.trainer import Trainer  # noqa: E402
from lavi_bridge.training.recipe import Recipe  # noqa: E402
from train_speed import PAIRS, machine, prepare  # noqa: E402

PICTURES = 256
WINDOW = 20  # steps that a smoothed loss is the mean of
RUNS = {"fp32": ("fp32", 0), "bf16": ("bf16", 0), "fp32, another seed": ("fp32", 1)}


def losses(recipe: Recipe) -> np.ndarray:
    """Train from the start; the smoothed loss [steps - WINDOW + 1]."""
    shutil.rmtree(recipe.output, ignore_errors=True)
    Trainer(recipe).run()
    log = (Path(recipe.output) / "log.jsonl").read_text().splitlines()
    seen = [entry["loss"] for entry in map(json.loads, log) if "loss" in entry]
    return np.convolve(seen, np.ones(WINDOW) / WINDOW, mode="valid")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for models, pictures and caches")
    parser.add_argument("--pair", choices=list(PAIRS), default="demo")
    parser.add_argument("--size", type=int, default=128, help="pixels")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    recipe = prepare(args.pair, args.work.resolve(), args.size, args.batch, PICTURES // args.batch)
    recipe = replace(recipe, steps=args.steps, save_every=args.steps)
    curves = {}
    for index, (name, (precision, seed)) in enumerate(RUNS.items()):
        output = f"{recipe.output}-parity-{index}"
        curves[name] = losses(replace(recipe, output=output, precision=precision, seed=recipe.seed + seed))
    plain, other, noise = curves.values()
    print(f"{machine(torch.device('cuda' if torch.cuda.is_available() else 'cpu'))}")
    print(f"{args.pair}, {args.size} pixels, batch {args.batch}, {args.steps} steps, mean of {WINDOW}\n")
    print("| run | first loss | last loss | mean distance from fp32 |\n|---|---|---|---|")
    for name, curve in curves.items():
        print(f"| {name} | {curve[0]:.4f} | {curve[-1]:.4f} | {np.abs(curve - plain).mean():.4f} |")
    if np.abs(other - plain).mean() > np.abs(noise - plain).mean():
        sys.exit("bf16 lies outside the noise of fp32")


if __name__ == "__main__":
    main()
