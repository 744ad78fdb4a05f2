"""``lavi-bridge encode``: the conditioning that a bridge makes of a file of prompts."""

from __future__ import annotations

import argparse

HELP = "write what a bridge says for a file of prompts"
STATES_HELP = (
    "instead of prompts and a language model, a .safetensors of its states: hidden_states [N T D], and if wanted mask "
    "[N T], 1 for those to be heard, and timesteps [N]; so that an adapter is compared with another program's"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bridge", help="a bridge .safetensors, or demo:minilm and the like")
    parser.add_argument(
        "--language-model",
        help="folder, .gguf file, demo:minilm or demo:smollm2 (default: the bridge's, looked for)",
    )
    parser.add_argument("--language-models", metavar="FOLDER", help="where the bridge's own is looked for")
    parser.add_argument("--prompts", help="text file, a prompt a line; an empty line is the empty prompt")
    parser.add_argument("--states", help=STATES_HELP)
    parser.add_argument("-o", "--output", required=True, help="the .safetensors to write")
    parser.add_argument("--timestep", type=float, help="0 to 1000, for an adapter that hears it")
    parser.add_argument("--own-encoder", help="of a bridge with two ears: its folder, or its pipeline's")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of the language model")
    parser.add_argument("--device", help="cuda, mps or cpu (default: the first of them that is here)")
    parser.add_argument(
        "--stream", action="store_true", help="read the language model's weights layer by layer, never hold them (CPU)"
    )


def run(args: argparse.Namespace) -> str:
    from ..models.bridge_files.encoding import encode

    return encode(args)
