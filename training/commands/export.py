"""``lavi-bridge export``: parts of a bridge in the files that other programs read."""

from __future__ import annotations

import argparse

HELP = "write parts of a bridge for peft, a LoRA loader, the authors' scripts or another project"
FORMAT_HELP = (
    "peft: folder of the language LoRA; lora: file of the vision LoRA; released: the authors' own folder; ella, "
    "rouwei, rouwei_unfused, rouwei_turbo and the other rows of lavi_core/importers/foreign.py: file of the adapter as "
    "that project keeps it"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bridge", help="a bridge .safetensors")
    parser.add_argument("--format", required=True, help=FORMAT_HELP)
    parser.add_argument("-o", "--output", required=True, help="the folder or .safetensors to write")
    parser.add_argument("--language-model", help="its Hugging Face folder (released: needed; peft: to check against)")
    parser.add_argument("--vision-model", help="its diffusers folder (released: needed)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")


def run(args: argparse.Namespace) -> str:
    from ..models.bridge_files.exporting import export

    return export(args)
