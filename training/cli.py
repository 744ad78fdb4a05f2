"""``lavi-bridge``: the command line."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable

from .evaluation.arguments import add_evaluation_arguments, run_evaluation


def main(argv: list[str] | None = None) -> int:
    """Exit status 0, 2 for bad input (one sentence on standard error), 130 when interrupted."""
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    quiet()
    return status(lambda: args.run(args))


def status(action: Callable[[], object]) -> int:
    """Run ``action``; its exit status."""
    try:
        action()
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


def quiet() -> None:
    """The libraries' own notices off; their errors are raised."""
    for name in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):  # read when they are first imported
        os.environ.setdefault(name, "error")
    for name in ("accelerate", "bitsandbytes", "diffusers", "httpx", "huggingface_hub", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="lavi-bridge", description="Bridges between language models and vision models.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train a bridge from a recipe")
    add_training_arguments(train)
    train.set_defaults(run=run_training)

    sample = commands.add_parser("sample", help="draw pictures with a bridge, without ComfyUI")
    sample.add_argument("bridge", help="a bridge .safetensors")
    sample.add_argument("prompts", nargs="+")
    sample.add_argument("--language-model", required=True, help="folder, .gguf file, demo:minilm or demo:smollm2")
    sample.add_argument("--vision-model", default="demo:vision", help="folder with unet/ and scheduler/")
    sample.add_argument("--vae", help="VAE folder or TAESD file (default: vae/ or vqvae/ of the vision model's folder)")
    sample.add_argument("-o", "--output", default="sample.png")
    sample.add_argument("--negative", default="")
    sample.add_argument("--steps", type=int, default=20)
    sample.add_argument("--guidance", type=float, help="default: 7.5, as in the paper; 3 for the demo's vision model")
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--size", type=int, help="side of the picture in pixels (default: the vision model's own)")
    sample.add_argument("--device", help="cuda, mps or cpu (default: the first of them that is here)")
    sample.set_defaults(run=_sample)

    take = commands.add_parser("import", help="turn the authors' published weights into a bridge file")
    take.add_argument("released", help="folder with adapter/, lora_text.pt and lora_vis.pt")
    take.add_argument("--language-model", required=True, help="Hugging Face folder; its weights need not be there")
    take.add_argument("--vision-model", required=True, help="diffusers folder of the pipeline, or of its U-Net alone")
    take.add_argument("-o", "--output", required=True, help="the bridge .safetensors to write")
    prompts = "change a value of the prompt recipe, which is the authors' for this vision model, as in max_length=120"
    take.add_argument("--prompt", action="append", default=[], metavar="KEY=VALUE", help=prompts)
    take.set_defaults(run=_import)

    give = commands.add_parser("export", help="write parts of a bridge for peft, a LoRA loader or the authors' scripts")
    give.add_argument("bridge", help="a bridge .safetensors")
    formats = "peft: folder of the language LoRA; lora: file of the vision LoRA; released: the authors' own folder"
    give.add_argument("--format", required=True, choices=("peft", "lora", "released"), help=formats)
    give.add_argument("-o", "--output", required=True, help="the folder or .safetensors to write")
    give.add_argument("--language-model", help="its Hugging Face folder (released: needed; peft: to check against)")
    give.add_argument("--vision-model", help="its diffusers folder (released: needed)")
    give.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    give.set_defaults(run=_export)

    inspect = commands.add_parser("inspect", help="print what a bridge file is")
    inspect.add_argument("bridge", help="a bridge .safetensors")
    inspect.add_argument("--json", action="store_true", help="print it as JSON")
    inspect.set_defaults(run=_inspect)

    encode = commands.add_parser("encode", help="write what a bridge says for a file of prompts")
    encode.add_argument("bridge", help="a bridge .safetensors")
    encode.add_argument("--language-model", required=True, help="folder, .gguf file, demo:minilm or demo:smollm2")
    encode.add_argument(
        "--prompts", required=True, help="text file, a prompt a line; an empty line is the empty prompt"
    )
    encode.add_argument("-o", "--output", required=True, help="the .safetensors to write")
    encode.add_argument("--batch-size", type=int, default=8)
    encode.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of the language model")
    encode.add_argument("--device", help="cuda, mps or cpu (default: the first of them that is here)")
    encode.add_argument(
        "--stream", action="store_true", help="read the language model's weights layer by layer, never hold them (CPU)"
    )
    encode.set_defaults(run=_encode)

    demo = commands.add_parser("demo", help="draw and judge with the bundled demo bridges")
    demo.add_argument("-o", "--output", default="demo.png")
    demo.add_argument("--prompts", type=int, default=16, help="judged prompts of each category (default 16)")
    demo.add_argument("--bridges", nargs="+", default=["minilm", "smollm2"], help="which demo bridges (default: both)")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16 is faster on some CPUs")
    demo.add_argument("--json", action="store_true", help="print the scores as JSON")
    demo.set_defaults(run=_demo)

    evaluate = commands.add_parser("evaluate", help="draw, measure and tabulate as the paper does")
    add_evaluation_arguments(evaluate)
    evaluate.set_defaults(run=_evaluate)

    tried = commands.add_parser("experiment", help="train, judge and tabulate a plan of many bridges")
    tried.add_argument("plan", help="a plan .toml")
    tried.add_argument("--work", required=True, help="folder of the runs; what is in it is not done again")
    tried.add_argument("-o", "--output", help="the page to write (default: README.md in the work folder)")
    tried.add_argument("--rows", nargs="+", default=[], help="train and judge these rows alone (default: all)")
    tried.add_argument("--seeds", nargs="+", type=int, default=[], help="these seeds alone (default: the plan's)")
    tried.add_argument("--page-only", action="store_true", help="train nothing: write the page from what is there")
    tried.set_defaults(run=_experiment)

    drawn = commands.add_parser("curves", help="draw the curves of runs into one picture")
    drawn.add_argument("runs", nargs="+", help="output folder of a run, or its log.jsonl")
    drawn.add_argument("-o", "--output", default="curves.png")
    drawn.set_defaults(run=_curves)

    install = commands.add_parser("install-demo", help="copy the demo's models to where its workflow finds them")
    install.add_argument("comfyui", help="the ComfyUI folder")
    install.set_defaults(run=_install)
    return top


def add_training_arguments(target: argparse.ArgumentParser) -> None:
    target.add_argument("recipe", help="a recipe .toml")
    target.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of the recipe")
    target.add_argument("--resume", action="store_true", help="go on from the newest state in the recipe's output")
    target.add_argument(
        "--dry-run", action="store_true", help="check everything and estimate the memory, train nothing"
    )


def run_training(args: argparse.Namespace) -> None:
    from .recipe import read_recipe

    if args.dry_run:
        _dry_run(args)
        return
    from .stopping import Stopped
    from .trainer import Trainer

    trainer = Trainer(read_recipe(args.recipe, args.set), resume=args.resume)
    try:
        bridge = trainer.run()
    except Stopped:
        if trainer.main:
            print(f"stopped at step {trainer.step}, saved in {trainer.output}: go on with --resume", file=sys.stderr)
        raise
    if trainer.main:
        print(bridge)


def _dry_run(args: argparse.Namespace) -> None:
    from .dryrun import dry_run
    from .recipe import read_recipe

    if int(os.environ.get("RANK", "0")):  # of a launcher's processes one speaks
        return
    report = dry_run(read_recipe(args.recipe, args.set), args.resume)
    print(report)
    if report.problems:
        raise ValueError(f"{args.recipe} cannot be trained here as it is; what stands in the way is listed above")


def _sample(args: argparse.Namespace) -> None:
    from .draw import draw

    print(draw(args))


def _import(args: argparse.Namespace) -> None:
    from .importing import import_released

    print(import_released(args))


def _export(args: argparse.Namespace) -> None:
    from .exporting import export

    print(export(args))


def _inspect(args: argparse.Namespace) -> None:
    from .inspecting import inspect

    print(inspect(args))


def _encode(args: argparse.Namespace) -> None:
    from .encoding import encode

    print(encode(args))


def _evaluate(args: argparse.Namespace) -> None:
    print(run_evaluation(args))


def _experiment(args: argparse.Namespace) -> None:
    from .experiment.run import experiment

    print(experiment(args))


def _curves(args: argparse.Namespace) -> None:
    from .curves import curves

    print(curves(args))


def _demo(args: argparse.Namespace) -> None:
    from .demo.show import show

    print(show(args))


def _install(args: argparse.Namespace) -> None:
    from .demo.install import install

    for path in install(args.comfyui):
        print(path)


if __name__ == "__main__":
    sys.exit(main())
