"""``lavi-bridge``: the command line. A verb is a file of this folder, with HELP, ``add_arguments`` and ``run``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Mapping
from types import ModuleType

from . import curves, demo, encode, evaluate, experiment, export, import_, inspect, install_demo, probe, sample, train

VERBS: Mapping[str, ModuleType] = {
    "probe": probe,
    "train": train,
    "sample": sample,
    "import": import_,
    "export": export,
    "inspect": inspect,
    "encode": encode,
    "demo": demo,
    "evaluate": evaluate,
    "experiment": experiment,
    "curves": curves,
    "install-demo": install_demo,
}


def main(argv: list[str] | None = None) -> int:
    """Exit status 0, 2 for bad input (one sentence on standard error), 130 when interrupted."""
    top = argparse.ArgumentParser(prog="lavi-bridge", description="Bridges between language models and vision models.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for name, verb in VERBS.items():
        command = commands.add_parser(name, help=verb.HELP)
        verb.add_arguments(command)
        command.set_defaults(run=verb.run)
    return execute(top.parse_args(argv))


def main_of_trainer(argv: list[str] | None = None) -> int:
    """``python -m lavi_bridge.training RECIPE.toml``, as a launcher starts it: the arguments of ``train`` alone."""
    top = argparse.ArgumentParser(prog="lavi_bridge.training")
    train.add_arguments(top)
    top.set_defaults(run=train.run)
    return execute(top.parse_args(argv))


def execute(args: argparse.Namespace) -> int:
    """Run the verb that was chosen and print what it returns; the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    stay_offline()
    quiet_libraries()
    return status(lambda: args.run(args))


def status(action: Callable[[], object]) -> int:
    """Run ``action`` and print what it returns, if anything; the exit status."""
    try:
        result = action()
        if result is not None:
            print(result, flush=True)
    except BrokenPipeError:  # who reads, as head does, has enough; nothing more is written, at the end of Python either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except ImportError as error:
        if (error.name or "").startswith(__name__.partition(".")[0]):
            raise
        print(f"lavi-bridge: {error}; install lavi-bridge[train]", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"lavi-bridge: {error}", file=sys.stderr)
        return 2
    return 0


def stay_offline() -> None:
    """No library asks a model hub for anything: all that is read lies in local folders.

    The hub's client reads this switch when it is first imported, which is later. To import diffusers or peft is enough
    for a question: findings/import-asks-hub.sh.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"


def quiet_libraries() -> None:
    """Turn the libraries' own notices off; their errors are raised."""
    for name in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):  # read when they are first imported
        os.environ.setdefault(name, "error")
    for name in ("accelerate", "bitsandbytes", "diffusers", "gguf", "httpx", "huggingface_hub", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
