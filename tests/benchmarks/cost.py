"""What does a bridge cost in ComfyUI: a sampling step, a prompt, another prompt, memory?

    python tests/benchmarks/cost.py --work FOLDER [--host COMFYUI] [PART ...]

Prints the machine and Markdown tables. Everything runs in the host's own library, by its own Python, on models of true
size with random weights, written to FOLDER (some 5 GB) and found there again. What is compared takes turns in one
process of one thread, and CPU seconds are counted, since other work on the machine is not the bridge's. A ratio is that
of the medians, its spread the ratios of the single turns.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import pairs  # registers the checkout as lavi_bridge
import torch
from lavi_bridge.lavi_core import adapters
from lavi_bridge.lavi_core.checkpoint import BridgeCheckpoint
from lavi_bridge.lavi_core.config import BridgeConfig, LoRAConfig, VisionConfig
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.lavi_core.lora import Delta, shapes
from lavi_bridge.lavi_core.prompt import PromptRecipe
from lavi_bridge.lavi_core.vision import target_of
from lavi_bridge.tests.nodes import host
from train_speed import machine
from true_sizes import VISION

INSIDE = Path(__file__).with_name("cost_inside.py")
HALF = "--bf16-unet"  # a flag of the host: Stable Diffusion 1.4 in 1.7 GB
MEGA = 1 << 20


@dataclass(frozen=True)
class Case:
    """A language model, of ``true_sizes``, and what its bridge hears of it."""

    language: str
    heard: str | int = "last"
    adapter: str = "mlp"

    @property
    def name(self) -> str:
        return self.language if self.heard == "last" else f"{self.language}, {self.heard} layers"


T5 = Case("t5-large")
ELLA = Case("t5-large", adapter="timestep_resampler")  # of ELLA's sizes, but for the width that it hears
CASES = (T5, Case("smollm2-135m"), Case("smollm2-135m", 8))


class Bench:
    """The folder with the models, and one process of the host a task."""

    def __init__(self, folder: Path, place: host.Place):
        self.workshop, self.place = pairs.Workshop(folder), place
        self.base = self.workshop.folder / "cost"
        for name in ("custom_nodes", "models/lavi_bridges"):
            (self.base / name).mkdir(parents=True, exist_ok=True)

    def ask(self, task: str, case: Case, dtype: str, *flags: str, vision: str = "sd14", **values: Any) -> Any:
        """What ``cost_inside`` found; ends the command where the host did not."""
        pair, out = pairs.Pair(case.language, vision), self.base / "found.json"
        given = {"name": task, "dtype": dtype, "bridge": self.bridge(case, vision), **values}
        given |= {"language": str(self.workshop.language(pair)), "vision": str(self.workshop.vision(pair))}
        command = [self.place.python, INSIDE, self.place.path, self.base, host.ROOT, out, *flags]
        print(f"{task}: {case.name}, {dtype} {values}", file=sys.stderr)
        done = subprocess.run(
            [str(part) for part in command],
            input=json.dumps(given),
            text=True,
            env=host.environment(),
            capture_output=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"{task} did not end well in {self.place}:\n{done.stderr[-4000:]}")
        return json.loads(out.read_text())

    def bridge(self, case: Case, vision: str) -> str:
        """The name of a bridge with random weights, rank 32 in both models."""
        kind = "" if case.adapter == "mlp" else f"-{case.adapter}"
        name = f"{case.language}-{case.heard}-{vision}{kind}.safetensors"
        path = self.base / "models" / "lavi_bridges" / name
        if not path.is_file():
            write_bridge(path, case, self.workshop.language(pairs.Pair(case.language, vision)), vision)
        return name


def write_bridge(path: Path, case: Case, language: Path, vision: str) -> None:
    import diffusers

    encoder, config = TextEncoder.skeleton(language), VISION[vision]
    with torch.device("meta"):
        network = diffusers.UNet2DConditionModel.from_config(config)
    target = target_of(config)
    out_width = target.context_width(config)
    sizes: dict[str, Any] = (
        {} if case.adapter == "mlp" else {"depth": 6, "tokens": 64, "heads": 8, "outer_norms": False}
    )
    adapter = adapters.configure(case.adapter, in_width=encoder.config.hidden_size, out_width=out_width, **sizes)
    ranks = LoRAConfig(rank=pairs.RANK, alpha=float(pairs.RANK))
    trained = VisionConfig(
        model_id=vision,
        target=target.name,
        context_width=out_width,
        objective="epsilon",
        latent_channels=4,
        latent_scale=0.18215,
        fingerprint="",
    )
    prompt = PromptRecipe(hidden_states=case.heard, language_mask=case is not T5)

    def deltas(model: Any, sites: list[str]) -> dict[str, Delta]:
        found = {}
        for site in sites:
            down, up = shapes(model.get_submodule(site), pairs.RANK)
            found[site] = Delta(torch.randn(down) * 0.02, torch.randn(up) * 0.02, 1.0)
        return found

    BridgeCheckpoint(
        BridgeConfig(
            language=encoder.config,
            prompt=prompt,
            adapter=adapter,
            vision=trained,
            language_lora=ranks,
            vision_lora=ranks,
        ),
        adapters.build(adapter).state_dict(),
        deltas(encoder.model, encoder.lora_sites()),
        deltas(network, target.sites(network)),
    ).save(path)


def middle(turns: list[list[float]]) -> float:
    return statistics.median(itertools.chain.from_iterable(turns))


def ratio(over: list[list[float]], under: list[list[float]]) -> str:
    """Of the medians, and the least and the largest of the turns."""
    turns = [statistics.median(a) / statistics.median(b) for a, b in zip(over, under, strict=True)]
    whole = middle(over) / middle(under)
    return f"{whole:.3f} | {min(turns):.3f}-{max(turns):.3f}"


def median(turns: list[list[float]]) -> str:
    seconds = middle(turns)
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def steps(bench: Bench, quick: bool) -> list[str]:
    side, steps, turns = (8, 3, 3) if quick else (16, 4, 9)
    found = bench.ask("step", T5, "bfloat16", vision="sd14-half", side=side, steps=steps, turns=turns)
    return [
        f"A sampling step: the U-Net of Stable Diffusion 1.4 at half its width, float32, {8 * side} pixels, guidance "
        f"on, 77 tokens, {turns} turns of {steps} steps",
        "",
        "| without the bridge | with it | ratio | of single turns |",
        "|---|---|---|---|",
        f"| {median(found['without'])} | {median(found['with'])} | {ratio(found['with'], found['without'])} |",
    ]


def timed(bench: Bench, quick: bool) -> list[str]:
    lines = [
        "A step with an adapter of ELLA's sizes, which runs at every call of the first picture, beside the MLP, which "
        "ran before (the same U-Net and language model, guidance on)",
        "",
        "| pixels | MLP | timestep resampler, first picture | ratio | of single turns | a further one | ratio "
        "| of single turns |",
        "|---|---|---|---|---|---|---|---|",
    ]
    other = bench.bridge(ELLA, "sd14-half")
    for side, steps, turns in ((8, 2, 2),) if quick else ((16, 3, 7), (64, 2, 3)):
        found = bench.ask("step", T5, "bfloat16", vision="sd14-half", side=side, steps=steps, turns=turns, other=other)
        parts = (f"{median(found[part])} | {ratio(found[part], found['with'])}" for part in ("other", "again"))
        lines.append(f"| {8 * side} | {median(found['with'])} | {' | '.join(parts)} |")
    return lines


def encoding(bench: Bench, quick: bool) -> list[str]:
    passes, turns = (1, 3) if quick else (2, 7)
    lines = [
        "A prompt through Bridge Text Encode, beside bare passes over the same 77 tokens: the layers used, by "
        f"transformers (a), and the adapter (b), {turns} turns of {passes}",
        "",
        "| language model | dtype | a | b | prompt to conditioning | over a | of single turns | over a + b "
        "| of single turns |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case in CASES:
        for dtype in ("bfloat16", "float32"):
            found = bench.ask("encode", case, dtype, passes=passes, turns=turns)
            bare, adapter, nodes = (found[part] for part in ("bare", "adapter", "nodes"))
            both = [[one + other for one, other in zip(*turn, strict=True)] for turn in zip(bare, adapter, strict=True)]
            lines.append(
                f"| {case.name} | {dtype} | {median(bare)} | {median(adapter)} | {median(nodes)} | "
                f"{ratio(nodes, bare)} | {ratio(nodes, both)} |"
            )
    return lines


def prompts(bench: Bench, quick: bool) -> list[str]:
    lines = [
        "Prompts one after the other, a picture sampled behind each (T5-Large, bfloat16)",
        "",
        "| prompt | seconds | loads by the host | passes of the language model | bytes read |",
        "|---|---|---|---|---|",
    ]
    for row in bench.ask("again", T5, "bfloat16", HALF, side=8, steps=1):
        lines.append(
            f"| {row['prompt']} | {row['seconds']:.4f} | {row['loads']} | {row['passes']} | {row['bytes']:,} |"
        )
    return lines


def memory(bench: Bench, quick: bool) -> list[str]:
    common: Any = {"side": 8, "steps": 1}
    lines = [
        "What the host's memory management holds on a device of limited memory (T5-Large and Stable Diffusion 1.4, "
        "bfloat16; prompt, picture, prompt, picture)",
        "",
        "| budget | language model | vision model | the most held at once |",
        "|---|---|---|---|",
    ]
    for share in (1.2, 3.0):
        found = bench.ask("budget", T5, "bfloat16", HALF, share=share, **common)
        print(found["held"], file=sys.stderr)
        cells = (found["language"], found["vision"], found["peak"])
        sizes = " | ".join(f"{size / MEGA:.0f} MB" for size in cells)
        lines.append(f"| {share} x the larger | {sizes} |")
    lines += [
        "",
        "Resident memory on the CPU at its peak, beyond the libraries'",
        "",
        "| what | own pages | pages mapped from files |",
        "|---|---|---|",
    ]
    for title, what, drop in (
        ("a prompt", ["encode"], False),
        ("a picture", ["sample"], False),
        ("both", ["encode", "sample"], False),
        ("both, the language model forgotten between (--cache-none)", ["encode", "sample"], True),
    ):
        found = bench.ask("resident", T5, "bfloat16", HALF, what=what, drop=drop, **common)
        lines.append(f"| {title} | {found['anonymous'] / MEGA:.0f} MB | {found['mapped'] / MEGA:.0f} MB |")
    return lines


PARTS: dict[str, Callable[[Bench, bool], list[str]]] = {
    "steps": steps,
    "timed": timed,
    "encoding": encoding,
    "prompts": prompts,
    "memory": memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="default: all")
    parser.add_argument("--work", type=Path, required=True, help="folder for the models")
    parser.add_argument("--host", type=Path, help="a ComfyUI with its .venv; default: COMFYUI_PATH or ~/comfy/ComfyUI")
    parser.add_argument("--quick", action="store_true", help="few and small turns, to see that it runs")
    args = parser.parse_args()
    if args.host:
        os.environ["COMFYUI_PATH"] = str(args.host)
    places = host.places()
    if not places:
        sys.exit("there is no ComfyUI: give its folder as --host")
    bench = Bench(args.work, places[0])
    torch.set_num_threads(1)  # as the host's process has it
    print(f"{places[0]}; {machine(torch.device('cpu'))}")
    for part in args.parts or PARTS:
        print("\n" + "\n".join(PARTS[part](bench, args.quick)), flush=True)


if __name__ == "__main__":
    main()
