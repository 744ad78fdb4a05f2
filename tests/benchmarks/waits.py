"""How long does a user of the graph wait: for a GGUF language model, and for a long prompt in pieces?

    python tests/benchmarks/waits.py --gguf SmolLM2.gguf [--host COMFYUI] [--earlier WORKTREE]

Prints a Markdown table for this build, and for an earlier one in a git worktree beside it. Each figure is the CPU
seconds of a new process of the host's Python on one thread, the builds taking turns; the median of the turns counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import as_package  # noqa: F401  (registers the checkout as lavi_bridge)
import torch
from lavi_bridge.lavi_core.checkpoint import BridgeCheckpoint
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.lavi_core.prompt import PromptRecipe
from lavi_bridge.tests.nodes import host
from lavi_bridge.tests.nodes import vision_models as vm
from lavi_bridge.tests.nodes.tiny import bridge
from train_speed import machine

INSIDE = Path(__file__).with_name("waits_inside.py")
TURNS = 3
TASKS = {
    "bytes": "its bytes and its tokenizer, read once",
    "load": "Load Language Model, the first of a process",
    "whole": "a prompt of 2,000 words at full length",
    "chunk": "the same in pieces",
}


def seconds(task: str, place: host.Place, base: Path, pack: Path) -> float:
    out = base / "seconds.json"
    command = [place.python, INSIDE, place.path, base, pack, out]
    done = subprocess.run(
        [str(part) for part in command],
        input=json.dumps(task),
        text=True,
        env=host.environment(),
        capture_output=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{task} did not end well in {place}:\n{done.stderr[-4000:]}")
    return json.loads(out.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, required=True, help="a language model, of which a copy is read")
    parser.add_argument("--host", type=Path, help="a ComfyUI; the one of the tests by default")
    parser.add_argument("--earlier", type=Path, help="a git worktree of an earlier commit")
    args = parser.parse_args()
    place = host.places()[0] if args.host is None else host.Place(args.host, args.host / ".venv" / "bin" / "python")
    builds = {"this build": host.ROOT} | ({} if args.earlier is None else {"earlier": args.earlier.resolve()})
    found: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        prepare(base, args.gguf)
        for _ in range(TURNS):
            for task in TASKS:
                for name, pack in builds.items():
                    found.setdefault((task, name), []).append(seconds(task, place, base, pack))
                    print(task, name, f"{found[task, name][-1]:.2f} s", file=sys.stderr, flush=True)
    print(f"{machine(torch.device('cpu'))}; {place}; {args.gguf.name}; medians of {TURNS}\n")
    print(table({key: statistics.median(times) for key, times in found.items()}, list(builds)))


def prepare(base: Path, gguf: Path) -> None:
    for name in ("custom_nodes", "models/LLM", "models/lavi_bridges", "models/diffusers"):
        (base / name).mkdir(parents=True)
    (base / "models" / "LLM" / "model.gguf").symlink_to(gguf.resolve())
    vision = vm.unet(base / "models" / "diffusers" / "tiny-flow", vm.FLOW, vm.TINY, vm.SCALE)
    path = base / "models" / "lavi_bridges" / "model.safetensors"
    bridge(path, TextEncoder.skeleton(gguf), vision)
    made = BridgeCheckpoint.load(path)  # of 77 tokens, as the paper's
    config = replace(made.config, prompt=PromptRecipe(max_length=77))
    BridgeCheckpoint(config, made.adapter, made.language_lora, made.vision_lora).save(path)


def table(medians: dict[tuple[str, str], float], builds: list[str]) -> str:
    lines = [f"| | {' | '.join(builds)} |", f"|---|{'---|' * len(builds)}"]
    for task, title in TASKS.items():
        lines.append(f"| {title} | {' | '.join(f'{medians[task, build]:.2f} s' for build in builds)} |")
    for over, under in (("load", "bytes"), ("chunk", "whole")):
        ratios: list[Any] = [f"{medians[over, build] / medians[under, build]:.2f}" for build in builds]
        lines.append(f"| ratio: {TASKS[over]} / {TASKS[under]} | {' | '.join(ratios)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
