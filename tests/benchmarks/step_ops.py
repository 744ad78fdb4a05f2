"""How many operations does a training step dispatch? A GPU waits for the CPU that launches them.

    python tests/benchmarks/step_ops.py [--checkout FOLDER] [--set KEY=VALUE ...]

One step of T5-Large + SD 1.4: their depth, narrow widths and random weights, with the paper's recipe in bf16. Counted
are the calls that reach a kernel, by a ``TorchDispatchMode``: views and allocations are not. Dropout and group norms
are called as on a GPU. Prints them by stage and by operation.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
UNCOUNTED = {
    *("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "detach", "_unsafe_view"),
    *("_record_function_enter_new", "_record_function_exit"),
}
SETTLED = 2  # steps before the one that is counted: an optimizer makes its moments in the first


def counting(stages: Any) -> Any:
    """A dispatch mode with ``counts``, by (stage, operation)."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counting(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.counts: Counter[tuple[str, str]] = Counter()

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = func.overloadpacket.__name__
            if not func.is_view and name not in UNCOUNTED:
                self.counts[stages._open[-1], name] += 1
            return func(*args, **(kwargs or {}))

    return Counting()


def count(work: Path, overrides: list[str], pair: str = "t5-large-sd14") -> Counter[tuple[str, str]]:
    """The operations of one step, by (stage, operation); models and pictures are written to ``work``."""
    import true_sizes
    from stages import Stages
    from timed_loops import Stop, ours
    from train_speed import PAIRS, prepare

    true_sizes.make_narrow(PAIRS[pair].language, PAIRS[pair].vision)
    recipe = prepare(pair, work, 192, 1, SETTLED + 2, ["precision=bf16", *overrides])
    with suppress(ImportError):  # a build of before has peft's
        from lavi_bridge.training.models import dropout, layers, lora_layers

        for module in (dropout, lora_layers):
            module.drop_out = lambda x, p: torch.native_dropout(x, p, True) if p else (x, None)
        layers._as_it_lay = lambda group_norm, input: group_norm(input)
    stages = Stages(torch.device("cpu"))
    stages.on = True  # the stage that it is in is asked for, not the time
    mode, seen = counting(stages), 0

    def gate() -> None:
        nonlocal seen
        if seen == SETTLED:
            mode.__enter__()
        elif seen > SETTLED:
            mode.__exit__(None, None, None)
            raise Stop
        seen += 1

    with suppress(Stop):
        ours(recipe, gate, stages)
    return mode.counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkout", type=Path, default=HERE.parents[1], help="of the build to count; default: this one"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for the recipe, as in train")
    parser.add_argument("--top", type=int, default=60, help="operations to list")
    args = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    sys.path[:0] = [str(args.checkout.resolve() / "tests" / "benchmarks"), str(args.checkout.resolve() / "tests")]
    with tempfile.TemporaryDirectory() as work:
        counts = count(Path(work), args.set)
    print(f"{sum(counts.values()):,} operations in a step\n")
    for key in (0, 1):
        found: Counter[str] = Counter()
        for names, number in counts.items():
            found[names[key]] += number
        print("\n".join(f"{number:6,} {name}" for name, number in found.most_common(args.top)), end="\n\n")


if __name__ == "__main__":
    main()
