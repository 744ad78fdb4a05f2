"""``lavi-bridge install-demo``: the demo's models, copied to where its workflow finds them in ComfyUI."""

from __future__ import annotations

import argparse

HELP = "copy the demo's models to where its workflow finds them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "comfyui", help="the ComfyUI folder (install_demo.py takes the one that it lies in, if none is named)"
    )
    parser.add_argument(
        "--smollm2",
        action="store_true",
        help="bring the second demo's language model too (98 MB; default: MiniLM alone)",
    )


def run(args: argparse.Namespace) -> str:
    """The files and folders that were written, a line each, and what is not among them."""
    from ..demo.install import install

    lines = [str(path) for path in install(args.comfyui, args.smollm2)]
    if not args.smollm2:
        lines.append("not brought: SmolLM2, which lavi_demo_bridge_smollm2 listens to; --smollm2 brings it (98 MB)")
    return "\n".join(lines)
