"""``lavi-bridge experiment``: a plan of many bridges, trained, judged and written as one page."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "train, judge and tabulate a plan of many bridges"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", help="a plan .toml")
    parser.add_argument("--work", required=True, help="folder of the runs; what is in it is not done again")
    parser.add_argument("-o", "--output", help="the page to write (default: README.md in the work folder)")
    parser.add_argument("--rows", nargs="+", default=[], help="train and judge these rows alone (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[], help="these seeds alone (default: the plan's)")
    parser.add_argument("--page-only", action="store_true", help="train nothing: write the page from what is there")


def run(args: argparse.Namespace) -> Path:
    """Run what is missing, write the page; returns its path."""
    from ..experiment.frechet import measure_floor
    from ..experiment.page import page
    from ..experiment.plan import read_plan
    from ..experiment.run import run
    from ..models import named
    from ..models.vae import load_vae
    from ..recipe import read_recipe

    path, work = Path(args.plan), Path(args.work)
    plan, output = read_plan(path), Path(args.output or work / "README.md")
    work.mkdir(parents=True, exist_ok=True)
    if not args.page_only:
        run(plan, path.parent, work, args.rows, args.seeds)
    vae = read_recipe(path.parent / plan.recipe).vision.vae
    measure_floor(load_vae(named.vae(vae)), plan.settings(), work)
    page(plan, work, output, f"lavi-bridge experiment {path.as_posix()} --work FOLDER")
    return output
