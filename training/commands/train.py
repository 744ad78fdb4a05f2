"""``lavi-bridge train``: a bridge from a recipe, or the check of a recipe that trains nothing (``--dry-run``)."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

HELP = "train a bridge from a recipe"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a recipe .toml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of the recipe")
    parser.add_argument("--resume", action="store_true", help="go on from the newest state in the recipe's output")
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything and estimate the memory, train nothing"
    )


def run(args: argparse.Namespace) -> Path | None:
    """The bridge file, on the main process alone; None after a dry run, whose report is printed."""
    from ..recipe import read_recipe

    if args.dry_run:
        _dry_run(args)
        return None
    from ..loop.stopping import Stopped
    from ..loop.trainer import Trainer

    trainer = Trainer(read_recipe(args.recipe, args.set), resume=args.resume)
    try:
        bridge = trainer.run()
    except Stopped:
        if trainer.main:
            print(f"stopped at step {trainer.step}, saved in {trainer.output}: go on with --resume", file=sys.stderr)
        raise
    return bridge if trainer.main else None


def _dry_run(args: argparse.Namespace) -> None:
    from ..dry_run import dry_run
    from ..recipe import read_recipe

    if int(os.environ.get("RANK", "0")):  # of a launcher's processes one speaks
        return
    report = dry_run(read_recipe(args.recipe, args.set), args.resume, lambda row: print(row, flush=True))
    print(report.conclusion(), end="\n" if report.notes or report.problems else "")
    if report.problems:
        raise ValueError(f"{args.recipe} cannot be trained here as it is; what stands in the way is listed above")
