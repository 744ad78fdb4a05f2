"""``lavi-bridge inspect``: what a bridge file is."""

from __future__ import annotations

import argparse
import json

HELP = "print what a bridge file is"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bridge", help="a bridge .safetensors")
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def run(args: argparse.Namespace) -> str:
    """The facts as text, or as JSON."""
    from ..models.bridge_files.describing import describe, readable

    facts = describe(args.bridge)
    return json.dumps(facts, indent=2) if args.json else readable(facts)
