"""``lavi-bridge demo``: what the bundled bridges draw, and how the judge scores it."""

from __future__ import annotations

import argparse

HELP = "draw and judge with the bundled demo bridges"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", default="demo.png", help="the pictures (default demo.png)")
    parser.add_argument("--prompts", type=int, default=4, help="judged prompts of each category (default 4)")
    parser.add_argument(
        "--bridges", nargs="+", default=["minilm", "smollm2"], help="which demo bridges (default: both)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the pictures' noise (default 0)")
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16"), default="auto", help="auto (the default): the faster here"
    )
    parser.add_argument("--device", help="cuda, mps or cpu (default: the best one here)")
    parser.add_argument("--json", action="store_true", help="print the scores as JSON")


def run(args: argparse.Namespace) -> str:
    from ..demo.show import show

    return show(args)
