"""``accelerate launch -m lavi_bridge.training RECIPE.toml``: the trainer on many processes."""

from __future__ import annotations

import argparse
import logging
import sys

from .cli import add_training_arguments, quiet, run_training, status


def main() -> int:
    parser = argparse.ArgumentParser(prog="lavi_bridge.training")
    add_training_arguments(parser)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    quiet()
    args = parser.parse_args()
    return status(lambda: run_training(args))


if __name__ == "__main__":
    sys.exit(main())
