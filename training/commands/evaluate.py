"""``lavi-bridge evaluate``: draw, measure and tabulate as the paper does, a step at a time or as a suite."""

from __future__ import annotations

import argparse

HELP = "draw, measure and tabulate as the paper does"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="STEP")

    prompts = commands.add_parser("prompts", help="write ShapeBench's prompts as a .tsv for generate")
    prompts.add_argument("-o", "--output", required=True, help="the .tsv to write")
    prompts.add_argument("--count", type=int, default=64, help="prompts of each category (default 64)")
    prompts.add_argument("--categories", nargs="+", metavar="NAME", help="default: all, unseen pairs and synonyms too")
    prompts.add_argument("--vocabulary", default="small", help="small (default) or full")
    prompts.add_argument("--seed", type=int, default=0)
    prompts.set_defaults(step=_prompts)

    draw = commands.add_parser("generate", help="draw the pictures of a run; the same command goes on after a kill")
    draw.add_argument("bridge", help="a bridge .safetensors, or demo:minilm and the like")
    draw.add_argument("--prompts", required=True, nargs="+", help=".txt, .tsv (prompt, category) or GenEval's .jsonl")
    draw.add_argument("--category", default="", help="of prompts whose file tells none, as in short or long")
    draw.add_argument(
        "--language-model",
        help="folder, .gguf file, demo:minilm or demo:smollm2 (default: the bridge's, looked for)",
    )
    draw.add_argument("--language-models", metavar="FOLDER", help="where the bridge's own is looked for")
    draw.add_argument("--vision-model", default="demo:vision", help="folder with unet/ (transformer/) and scheduler/")
    draw.add_argument("--own-encoder", help="of a bridge with two ears, folder (default: the vision model's folder)")
    draw.add_argument("--vae", help="VAE folder or TAESD file (default: vae/ or vqvae/ of the vision model's folder)")
    draw.add_argument("-o", "--output", required=True, metavar="RUN", help="the run folder")
    draw.add_argument("--seeds", nargs="+", default=["42"], help="numbers or spans as in 42..51 (default 42)")
    draw.add_argument("--sampler", default="unipc", help="unipc (default, the paper's) or euler (ComfyUI's)")
    draw.add_argument("--steps", type=int, default=50)
    draw.add_argument("--guidance", type=float, default=7.5)
    draw.add_argument("--quality-suffix", action="store_true", help="the authors' quality words behind every prompt")
    draw.add_argument("--negative", default="")
    draw.add_argument("--size", type=int, help="side of the pictures (default: the vision model's own)")
    draw.add_argument("--batch-size", type=int, default=8)
    draw.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    draw.add_argument("--device", help="cuda, mps or cpu (default: the first of them that is here)")
    draw.set_defaults(step=_generate)

    own = commands.add_parser("own", help="write the vision model's own text encoder as a bridge, to compare with")
    own.add_argument("vision_model", help="folder of the whole pipeline, with text_encoder/ and tokenizer/")
    own.add_argument("-o", "--output", required=True, help="the bridge .safetensors to write")
    own.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a value of the prompt recipe, which is the authors' for this vision model, as in max_length=120",
    )
    own.set_defaults(step=_own)

    score = commands.add_parser("score", help="measure a run with the metrics whose weights are here")
    score.add_argument("folder", metavar="RUN", help="the run folder")
    _add_weights(score)
    score.add_argument("--metrics", nargs="+", metavar="NAME", help="default: all that there are")
    score.add_argument("--reference", help="statistics of true pictures for FID, made by `evaluate stats`")
    score.add_argument("--require", action="store_true", help="exit with 2 where a metric is unavailable")
    score.add_argument("--missing", action="store_true", help="measure only what has no value yet")
    score.set_defaults(step=_score)

    stats = commands.add_parser("stats", help="compute what FID compares with, from a folder of pictures")
    stats.add_argument("--images", required=True, help="the folder; pictures of its folders count too")
    stats.add_argument("--size", type=int, help="first resize the short side (bicubic) and cut the centre")
    stats.add_argument("-o", "--output", required=True, help="the .npz to write")
    _add_weights(stats)
    stats.set_defaults(step=_stats)

    expand = commands.add_parser("expand", help="make long prompts of short ones by a local language model")
    expand.add_argument("prompts", nargs="+", help=".txt, .tsv or .jsonl")
    expand.add_argument("--lm", required=True, help="folder of a causal language model, a .gguf file or demo:smollm2")
    expand.add_argument("-o", "--output", required=True, help="the .jsonl to write; what it holds is not made again")
    expand.add_argument("--seed", type=int, default=0)
    expand.add_argument("--tries", type=int, default=4, help="for a length of 20 to 70 words (default 4)")
    expand.add_argument("--device", help="cuda, mps or cpu (default: the first of them that is here)")
    expand.set_defaults(step=_expand)

    table = commands.add_parser("table", help="runs beside the paper's reported figures, as Markdown")
    table.add_argument("folders", nargs="+", metavar="RUN")
    table.add_argument("--paper", default="language", help="which of its tables: language (default), vision, ablation")
    table.add_argument("-o", "--output", help="write it to a file as well")
    table.set_defaults(step=_table)

    suite = commands.add_parser("suite", help="generate, score and table of many bridges, as one TOML file says")
    suite.add_argument("suite", help="a suite .toml, such as training/recipes/evaluation/demo.toml")
    suite.add_argument("--work", required=True, help="folder of the runs and of table.md; what it holds is not redone")
    suite.add_argument("--device", help="cuda, mps or cpu (default: the first of them that is here)")
    suite.set_defaults(step=_suite)


def run(args: argparse.Namespace) -> str:
    """Run the chosen step and return its report."""
    return args.step(args)


def _add_weights(target: argparse.ArgumentParser) -> None:
    target.add_argument("--weights", help="the TOML file that names local weights and their checksums")
    target.add_argument("--batch-size", type=int, default=16)
    target.add_argument("--device", help="cuda, mps or cpu (default: the first of them that is here)")


def _prompts(args: argparse.Namespace) -> str:
    from ...lavi_core.files import write_text
    from ..evaluation.shapebench import ROWS
    from ..evaluation.shapebench_captions import table_of

    text = table_of(args.categories or [row.name for row in ROWS], args.count, args.seed, args.vocabulary)
    write_text(args.output, text)
    return f"{args.output}: {text.count(chr(10))} prompts"


def _generate(args: argparse.Namespace) -> str:
    from ..evaluation.generate import generate

    return generate(args)


def _own(args: argparse.Namespace) -> str:
    from ..evaluation.own_encoder import own

    return own(args)


def _score(args: argparse.Namespace) -> str:
    from ..evaluation.score import score

    return score(args)


def _stats(args: argparse.Namespace) -> str:
    from ..evaluation.metrics.fid import stats

    return stats(args)


def _expand(args: argparse.Namespace) -> str:
    from ..evaluation.expand import expand

    return expand(args)


def _table(args: argparse.Namespace) -> str:
    from ..evaluation.table import table

    return table(args)


def _suite(args: argparse.Namespace) -> str:
    from ..evaluation.suite import suite

    return suite(args)
