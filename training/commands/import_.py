"""``lavi-bridge import``: the authors' published weights as a bridge file."""

from __future__ import annotations

import argparse

HELP = "turn the authors' published weights into a bridge file"
PROMPT_HELP = "change a value of the prompt recipe, which is the authors' for this vision model, as in max_length=120"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("released", help="folder with adapter/, lora_text.pt and lora_vis.pt")
    parser.add_argument("--language-model", required=True, help="Hugging Face folder; its weights need not be there")
    parser.add_argument("--vision-model", required=True, help="diffusers folder of the pipeline, or of its U-Net alone")
    parser.add_argument("-o", "--output", required=True, help="the bridge .safetensors to write")
    parser.add_argument("--prompt", action="append", default=[], metavar="KEY=VALUE", help=PROMPT_HELP)


def run(args: argparse.Namespace) -> str:
    from ..models.bridge_files.importing import import_released

    return import_released(args)
