"""How fast does a pair train, beside the authors' loop on the same models, pictures and batch?

    python tests/benchmarks/train_speed.py --work FOLDER [--earlier WORKTREE] [PAIR ...]

Prints Markdown tables: images/s, seconds a step, peak memory, the share of the machine's measured matrix rate, and the
share of time of each stage, in the precision that the device is fastest in. Each loop runs in a process of its own,
caches warm; the loops take turns, a few steps each, and the median turn counts, so that what else the machine does
falls on both; ratios of speed are medians of the turns' own, with their quartiles. With one thread on a CPU the
seconds are those that the process computed, not those that others did. Models of true size, with random weights, are
written to FOLDER (about 5 GB) and found there again; the demo pair is the committed one. ``--earlier`` times a second
build of ours, such as ``git worktree add WORKTREE COMMIT`` makes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(Path(__file__).parent)]

import torch  # noqa: E402
import true_sizes  # noqa: E402
from as_package import CHECKOUT  # noqa: E402  (and a checkout is lavi_bridge)
from lavi_bridge.training.recipe import Recipe  # noqa: E402
from lavi_bridge.training.shapebench import CATEGORIES, VOCABULARIES, caption, render, sample_scene  # noqa: E402
from stages import NAMES  # noqa: E402
from timed_loops import LOOPS, as_read, work  # noqa: E402

CPU = torch.device("cpu")
TITLES = {"language": "tokens, language model", "vision": "vision forward", "rest": "logging, rest"}


@dataclass(frozen=True)
class Pair:
    """recipe: below training/recipes. size, batch: pixels and pictures a step, on a CPU and on a GPU."""

    recipe: str
    size: dict[str, int]
    batch: dict[str, int]
    language: str = ""
    vision: str = ""


PAIRS = {
    "demo": Pair("demo/minilm", {"cpu": 128, "cuda": 128}, {"cpu": 48, "cuda": 48}),
    **{
        f"t5-large-{vision}": Pair(
            f"paper/t5-large-{vision}", {"cpu": 256, "cuda": 512}, {"cpu": 2, "cuda": 16}, "t5-large", vision
        )
        for vision in ("sd14", "pixart", "sdxl")
    },
}


def prepare(name: str, *how: Any, **more: Any) -> Recipe:
    """The recipe of a pair, given what ``changes`` says, as this build reads it."""
    return as_read(PAIRS[name].recipe, changes(name, *how, **more))


def changes(
    name: str,
    folder: Path,
    size: int,
    batch: int,
    steps: int,
    overrides: Sequence[str] = (),
    device: torch.device = CPU,
) -> list[str]:
    """What a pair's recipe is given, each ``key.sub=value``, to be run on pictures and models in ``folder``, both
    written if they are not there.

    steps: how many batches of pictures there are. overrides: come last.
    """
    from lavi_bridge.training.models.device import fastest_precision  # which an earlier build lacks

    pair = PAIRS[name]
    given = {
        "output": folder / "speed" / name,
        "steps": 1_000_000,
        "save_every": 1_000_000,
        "sample.every": 0,
        "batch_size": batch,
        "precision": fastest_precision(device),
        "align.steps": 0,
        "data.kind": "tsv",
        "data.path": pictures(folder / "speed" / f"pictures-{size}", size, batch * steps),
        "data.cache": folder / "speed" / "latents",
        "data.resolution": size,
    }
    if pair.language:
        language, vision = folder / "language" / pair.language, folder / "vision" / pair.vision
        _once(language, lambda part: true_sizes.write_language(pair.language, part))
        _once(vision, lambda part: true_sizes.write_vision(pair.vision, part))
        given |= {"language.model": language, "vision.model": vision, "vision.vae": vision / "vae"}
    return [*(f"{key}={value}" for key, value in given.items()), *overrides]


def pictures(folder: Path, size: int, count: int) -> Path:
    """A table of ``count`` ShapeBench pictures, as many as are seen, so that no loop begins an epoch while timed."""
    import numpy as np
    from PIL import Image
    from tqdm import tqdm

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, lines = VOCABULARIES["full"], []
    for index in tqdm(range(count), desc="pictures", mininterval=2):
        rng = np.random.default_rng([0, index])
        scene = sample_scene(rng, list(CATEGORIES)[index % len(CATEGORIES)], vocabulary, "train")
        path = folder / f"{index:05}.png"
        if not path.is_file():
            Image.fromarray(render(scene, size)).save(path)
        lines.append(f"{path}\t{caption(scene, rng, 'train', vocabulary=vocabulary)}\n")
    table = folder / f"{count}.tsv"
    table.write_text("".join(lines))
    return table


def _once(folder: Path, make: Any) -> None:
    if not folder.is_dir():
        print(f"writing {folder}", file=sys.stderr)
        part = folder.with_name(f".{folder.name}.part")
        make(part)
        part.rename(folder)


class Worker:
    """One loop in a process of its own, which waits until it is told to take steps."""

    def __init__(self, loop: str, pair: str, given: list[str], earlier: Path | None = None):
        context = multiprocessing.get_context("spawn")
        recipe = as_read(PAIRS[pair].recipe, given)
        if loop == "earlier":
            os.environ[CHECKOUT] = str(earlier)  # of the process that is made now
            given = [*given, f"output={Path(recipe.output).with_name('earlier')}"]
        self.connection, other = context.Pipe()
        self.process = context.Process(target=work, args=(loop, PAIRS[pair].recipe, given, other))
        self.process.start()
        os.environ.pop(CHECKOUT, None)
        other.close()
        wanted, built = (earlier if loop == "earlier" else None) or ROOT, self.connection.recv()
        if Path(built) != wanted.resolve():
            self.process.terminate()  # it waits for its first turn, and would be waited for
            sys.exit(f"the loop {loop!r} runs the build in {built}, not the one in {wanted}")

    def ask(self, what: str, steps: int = 1) -> Any:
        try:
            self.connection.send((what, steps))
            return self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            sys.exit(f"a loop ended before its time (exit code {self.process.exitcode}); its reason stands above")

    def quit(self) -> None:
        self.connection.send(("quit", 0))
        self.process.join()


def measure(
    name: str,
    loops: list[str],
    given: list[str],
    turns: int,
    steps: int,
    warmup: int,
    device: torch.device,
    earlier: Path | None = None,
) -> tuple[dict[str, dict[str, Any]], float]:
    """What was measured of each loop, by its name; the machine's best matrix rate between the turns, FLOP/s."""
    recipe = as_read(PAIRS[name].recipe, given)
    if "ours" in loops:
        fill(name, given)
    workers = {loop: Worker(loop, name, given, earlier) for loop in loops}
    taken: dict[str, list[float]] = {loop: [] for loop in loops}
    for worker in workers.values():
        worker.ask("time", warmup)
    rate = 0.0
    for turn in range(turns):
        rate = max(rate, matrix_rate(device, torch.bfloat16 if recipe.precision == "bf16" else torch.float32))
        for loop, worker in workers.items():
            taken[loop].append(worker.ask("time", steps))
            print(f"{name}, {loop}, turn {turn + 1}: {taken[loop][-1]:.3f} s a step", file=sys.stderr)
    found = {}
    for loop, worker in workers.items():
        second = statistics.median(taken[loop])
        found[loop] = {
            "seconds": second,
            "turns": taken[loop],
            "images_per_second": recipe.batch_size / second,
            "stages": worker.ask("stages", steps),
            "memory": worker.ask("memory"),
            "flops": worker.ask("flops"),
        }
        worker.quit()
    return found, rate


def fill(name: str, given: list[str]) -> None:
    """Fill the caches, so that the process that is measured finds them warm."""
    filler = Worker("ours", name, given)
    filler.ask("time", 1)
    filler.quit()


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product, the best of several."""
    size, repeats = (8192, 20) if device.type == "cuda" else (2048, 2)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, end = float("inf"), time.perf_counter() + 10
    for _ in range(8):
        if time.perf_counter() > end:  # asked for bf16 without it in the processor, one product takes that long
            break
        _wait(device)
        begun = time.perf_counter()
        for _ in range(repeats):
            torch.mm(a, b)
        _wait(device)
        best = min(best, (time.perf_counter() - begun) / repeats)
    return 2 * size**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.is_file() else []
        name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    return f"{name}, {os.cpu_count()} CPU cores, {torch.get_num_threads()} threads, torch {torch.__version__}"


def table(results: dict[str, dict[str, Any]], rate: float) -> str:
    """Two Markdown tables: speed and memory; stages."""
    speed = [
        "| pair | pixels | batch, ours in | loop | images/s | s/step | peak memory | TFLOP/step | of the matrix rate |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    shares = [
        "| pair | loop | " + " | ".join(TITLES.get(name, name) for name in NAMES) + " |",
        "|---" * (2 + len(NAMES)) + "|",
    ]
    for pair, result in results.items():
        loops = result["loops"]
        size = f"| {pair} | {result['size']} | {result['batch']}, {result['precision']} "
        for loop, found in loops.items():
            speed.append(
                f"{size}| {loop} | {found['images_per_second']:.2f} | {found['seconds']:.2f} | "
                f"{found['memory'] / 2**30:.2f} GB | {found['flops'] / 1e12:.2f} | "
                f"{found['flops'] / found['seconds'] / rate:.0%} |"
            )
            total = sum(found["stages"].values())
            cells = " | ".join(f"{found['stages'][name] / total:.1%}" for name in NAMES)
            shares.append(f"| {pair} | {loop} | {cells} |")
        for other in loops.keys() - {"ours"} if "ours" in loops else ():
            memory, flops = (loops["ours"][key] / loops[other][key] for key in ("memory", "flops"))
            both = zip(loops["ours"]["turns"], loops[other]["turns"], strict=True)
            faster = [theirs / here for here, theirs in both]
            low, middle, high = statistics.quantiles(faster, n=4) if len(faster) > 1 else faster * 3
            speed.append(
                f"{size}| ours / {other} | {middle:.2f} ({low:.2f} to {high:.2f}) | {1 / middle:.2f} | {memory:.2f} | "
                f"{flops:.2f} | |"
            )
    return "\n".join([*speed, "", *shares])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="*", choices=[[], *PAIRS], help="default: all")
    parser.add_argument("--work", type=Path, required=True, help="folder for models, pictures and caches")
    parser.add_argument("--size", type=int, help="pixels; default: 128 (demo), 256 on a CPU, 512 on a GPU")
    parser.add_argument("--batch", type=int, help="pictures a step; default: 48 (demo), 2 on a CPU, 16 on a GPU")
    parser.add_argument("--narrow", action="store_true", help="T5 and U-Net in their depth with a few channels")
    parser.add_argument("--turns", type=int, default=3, help="of each loop")
    parser.add_argument("--steps", type=int, help="of each turn; default: 3, on a GPU 20")
    parser.add_argument("--warmup", type=int, default=2, help="steps before the first turn")
    parser.add_argument("--loops", nargs="+", choices=list(LOOPS), help="default: all that there are")
    parser.add_argument("--earlier", type=Path, metavar="WORKTREE", help="another build, to be timed beside this one")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for the recipe, as in train")
    parser.add_argument("--prepare", action="store_true", help="write models, pictures and caches, and time nothing")
    parser.add_argument("--json", action="store_true", help="print everything measured as JSON instead of tables")
    args = parser.parse_args()
    loops_wanted = args.loops or [loop for loop in LOOPS if args.earlier or loop != "earlier"]
    if "earlier" in loops_wanted and not args.earlier:
        parser.error("the loop earlier is another build's: name its checkout with --earlier")
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the loops pick a GPU where they see one
    device = torch.device(args.device)
    steps = args.steps or {"cpu": 3, "cuda": 20}[args.device]
    results: dict[str, dict[str, Any]] = {}
    rate = 0.0
    for name in args.pairs or PAIRS:
        size, batch = args.size or PAIRS[name].size[args.device], args.batch or PAIRS[name].batch[args.device]
        seen = args.warmup + (args.turns + 1) * steps + 1
        folder = args.work.resolve()
        if args.narrow and PAIRS[name].language:
            true_sizes.make_narrow(PAIRS[name].language, PAIRS[name].vision)
            folder /= "narrow"
        given = changes(name, folder, size, batch, seen, args.set, device)
        if args.prepare:
            fill(name, given)
            continue
        loops, found = measure(name, loops_wanted, given, args.turns, steps, args.warmup, device, args.earlier)
        rate = max(rate, found)
        precision = as_read(PAIRS[name].recipe, given).precision
        results[name] = {"size": size, "batch": batch, "precision": precision, "loops": loops}
    if args.prepare:
        return
    if args.json:
        print(json.dumps({"machine": machine(device), "matrix_rate": rate, "pairs": results}, indent=1))
        return
    print(f"{machine(device)}; matrix rate {rate / 1e12:.2f} TFLOP/s\n\n{table(results, rate)}")


if __name__ == "__main__":
    main()
