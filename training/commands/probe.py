"""``lavi-bridge probe``: which language model and which hidden states are worth a bridge, before any training."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

HELP = "tell which language model and hidden states are worth a bridge, from captions alone"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs="*", metavar="MODEL", help="folders, .gguf files, demo:minilm, demo:smollm2")
    parser.add_argument("--captions", help=".txt (one a line), the data's .tsv or metadata.jsonl, or its folder")
    parser.add_argument(
        "--shapebench", default="small", help="without --captions: its captions, small (default) or full"
    )
    parser.add_argument("--count", type=int, default=1024, help="captions that maps are solved on (default 1024)")
    parser.add_argument("--teacher", default="", help="the vision model's own encoder, or its pipeline's folder")
    parser.add_argument(
        "--layers", default="all", help="hidden states with commas between, as in 0,6,last (default all)"
    )
    parser.add_argument("--max-length", type=int, default=77, help="tokens heard of a caption (default 77)")
    parser.add_argument(
        "--check", metavar="PLAN", help="compare with the judged runs of this experiment's plan instead"
    )
    parser.add_argument("--work", help="of --check: the folder of the plan's results")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of the language models")
    parser.add_argument("--device", help="cuda, mps or cpu (default: the first of them that is here)")
    parser.add_argument("-o", "--output", required=True, help="the folder to write table.md, probe.json, probe.png to")


def run(args: argparse.Namespace) -> str:
    """The page that was written."""
    from ..models.bridge_files.encoding import DTYPES
    from ..models.device import pick_device
    from ..probe.captions import LEAST, of_file, of_shapebench
    from ..probe.check import check
    from ..probe.run import probe, targets_of, write

    if args.count < LEAST or args.batch_size < 1:
        raise ValueError(
            f"--count must be at least {LEAST}, below which nothing can be told, and --batch-size 1, got {args.count} "
            f"and {args.batch_size}"
        )
    if bool(args.models) == bool(args.check):
        raise ValueError("name language models to probe, or --check PLAN --work FOLDER, one of the two")
    folder, device = Path(args.output), pick_device(args.device)
    if args.check:
        if not args.work:
            raise ValueError("--check needs --work, the folder of the plan's results")
        return check(Path(args.check), Path(args.work), folder, args.count, device, args.teacher)
    captions = of_file(Path(args.captions), args.count) if args.captions else of_shapebench(args.shapebench, args.count)
    targets = targets_of(captions, args.teacher, args.max_length, device)
    rest = (device, args.layers, args.max_length, args.batch_size, DTYPES[args.precision])
    probed = [probe(model, captions, targets, *rest) for model in args.models]
    return write(probed, captions, targets, folder, _command(args))


def _command(args: argparse.Namespace) -> str:
    given = {"captions": "", "shapebench": "small", "teacher": "", "layers": "all", "count": 1024, "max_length": 77}
    parts = ["lavi-bridge", "probe", *args.models]
    for key, default in given.items():
        if (value := getattr(args, key)) and value != default:
            parts += [f"--{key.replace('_', '-')}", str(value)]
    return shlex.join([*parts, "-o", args.output])
