"""``lavi-bridge import``: published weights of the authors and of other projects as a bridge file."""

from __future__ import annotations

import argparse

HELP = "turn published weights, the authors' or another project's, into a bridge file"
SOURCE_HELP = (
    "the authors' folder (adapter/, lora_text.pt, lora_vis.pt), or a file of another project's adapter, known by its "
    "tensors: ELLA, RouWei, Anima and others (lavi_core/importers/README.md has the table)"
)
PROMPT_HELP = (
    "change a value of the prompt recipe, which is the authors' for this vision model, or the preset's, as in "
    "max_length=120"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help=SOURCE_HELP)
    parser.add_argument(
        "--language-model", required=True, help="Hugging Face folder, whose weights need not be there, or a .gguf file"
    )
    parser.add_argument(
        "--vision-model",
        help="diffusers folder of the pipeline, or of its network alone (of a file: to record and check it)",
    )
    parser.add_argument("--preset", help="of a file, for what it does not say; told where one has to be named")
    parser.add_argument("--heads", type=int, help="of the file's attention, in place of the preset's")
    parser.add_argument(
        "--query-tokenizer",
        help="tokenizer.json or its folder, of a file whose adapter asks with its ids (Anima's: T5's)",
    )
    parser.add_argument("-o", "--output", required=True, help="the bridge .safetensors to write")
    parser.add_argument("--prompt", action="append", default=[], metavar="KEY=VALUE", help=PROMPT_HELP)


def run(args: argparse.Namespace) -> str:
    from ..models.bridge_files.importing import import_source

    return import_source(args)
