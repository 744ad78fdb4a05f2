"""``lavi-bridge demo``: what the bundled bridges draw, and how the judge scores it."""

from __future__ import annotations

import argparse

HELP = "draw and judge with the bundled demo bridges"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", default="demo.png")
    parser.add_argument("--prompts", type=int, default=16, help="judged prompts of each category (default 16)")
    parser.add_argument(
        "--bridges", nargs="+", default=["minilm", "smollm2"], help="which demo bridges (default: both)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16 is faster on some CPUs")
    parser.add_argument("--json", action="store_true", help="print the scores as JSON")


def run(args: argparse.Namespace) -> str:
    from ..demo.show import show

    return show(args)
