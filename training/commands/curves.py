"""``lavi-bridge curves``: the curves of runs in one picture."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "draw the curves of runs into one picture"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", help="output folder of a run, or its log.jsonl")
    parser.add_argument("-o", "--output", default="curves.png")


def run(args: argparse.Namespace) -> str:
    """Draw the runs, folders or logs, into one picture and return its path."""
    from ..loop.curves import draw, read_run

    logs = [path / "log.jsonl" if path.is_dir() else path for path in map(Path, args.runs)]
    names = [log.resolve().parent.name for log in logs]
    if len(set(names)) < len(names):
        names = [str(log.parent) for log in logs]
    draw([read_run(log, name) for log, name in zip(logs, names, strict=True)], Path(args.output))
    return str(args.output)
