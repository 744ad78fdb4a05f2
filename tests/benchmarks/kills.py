"""SIGKILLs a trainer at random moments, resumes it until it is done, and compares with a run that was never killed.

    python tests/benchmarks/kills.py --kills 100

Every file that a run goes on from or gives is compared: the last state, the log and the bridge, to the bit. States are
written at every step, so that many kills fall inside of saving; how many did is told by what they left half done.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import as_package  # noqa: E402, F401  (registers the checkout as lavi_bridge)
from lavi_bridge.tests.training.forks import Server  # noqa: E402
from lavi_bridge.tests.training.tiny import write_recipe, write_tiny  # noqa: E402
from lavi_bridge.training.loop.checkpoint import states  # noqa: E402

STEPS = 24
CHANGES = ["save_every=1", "keep=2", "keep_every=10", "ema=0.9", "precision=fp32", "data.count=8"]


def kill_and_resume(server: Server, folder: Path, recipe: Path, kills: int, seed: int, steps: int) -> Counter[str]:
    """How many of ``kills`` fell where. Raises AssertionError for the first run that does not end as it should."""
    from tqdm import tqdm

    generator, where = random.Random(seed), Counter[str]()
    with tqdm(total=kills, desc="kills", mininterval=2) as bar:
        began = time.monotonic()
        whole = folder / "whole"
        assert server.run(recipe, changes(whole, steps)) == [0], server.said()
        length = time.monotonic() - began
        runs = 0
        while where.total() < kills:
            runs += 1
            output, resume, done = folder / f"run{runs}", False, False
            while not done:
                before = newest(output)
                moment = generator.uniform(0, length) if where.total() < kills else None
                status = server.run(recipe, changes(output, steps), resume=resume, kill_after=moment)
                done = status == [0]
                assert done or status == [-9], server.said()
                if not done:
                    resume = (output / "recipe.json").is_file()  # else it was killed before it had written anything
                    where[fell(output, before)] += 1
                    bar.update()
            found, expected = contents(output, steps), contents(whole, steps)
            odd = [key for key in {**found, **expected} if found.get(key) != expected.get(key)]
            assert not odd, f"run {runs} differs from the one that was never killed in {', '.join(odd)}"
            assert not [*output.rglob("*.part"), *output.rglob("*.gone")], f"{output} was not tidied up"
        where["runs"] = runs
    return where


def changes(output: Path, steps: int) -> list[str]:
    return [*CHANGES, f"steps={steps}", f"output={json.dumps(str(output))}"]


def newest(output: Path) -> str:
    found = states(output / "state")
    return found[-1].name if found else ""


def fell(output: Path, before: str) -> str:
    """Where a kill fell, by what it left behind; ``before``: the newest state when the process started."""
    state = output / "state"
    for pattern, name in ((".step-*.part", "writing a state"), (".step-*.gone", "deleting an old state")):
        if any(state.glob(pattern)):
            return name
    if any(output.glob(".*.part")):
        return "writing another file"
    return "starting" if newest(output) == before else "between two files"


def contents(output: Path, steps: int) -> dict[str, bytes | list]:
    """What must be the same in every run, by name. The bridge's header names its output folder."""
    found: dict[str, bytes | list] = {}
    for state in states(output / "state"):
        found |= {f"{state.name}/{path.name}": path.read_bytes() for path in sorted(state.iterdir())}
    bridge = (output / "bridge.safetensors").read_bytes()
    found["bridge"] = bridge[8 + int.from_bytes(bridge[:8], "little") :]
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    found["log"] = [(line["step"], line["loss"], line["norm"]) for line in lines]
    assert len(lines) == steps and f"step-{steps:07d}/weights.safetensors" in found
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = write_recipe(folder / "recipe.toml", write_tiny(folder / "models"), folder / "run")
        with Server(folder / "server.txt") as server:
            where = kill_and_resume(server, folder, recipe, args.kills, args.seed, STEPS)
    runs = where.pop("runs")
    print(f"{where.total()} kills over {runs} runs of {STEPS} steps; every run ended as the one that was never killed")
    for place, count in where.most_common():
        print(f"{count:5}  {place}")


if __name__ == "__main__":
    main()
