"""``lavi-bridge install-demo``: the demo's models, copied to where its workflow finds them in ComfyUI."""

from __future__ import annotations

import argparse

HELP = "copy the demo's models to where its workflow finds them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("comfyui", help="the ComfyUI folder")


def run(args: argparse.Namespace) -> str:
    """The files and folders that were written, a line each."""
    from ..demo.install import install

    return "\n".join(map(str, install(args.comfyui)))
