"""The memory of a training step of each recipe of the newer vision models, at true size and without a weight.

    python tests/benchmarks/modern_memory.py --work FOLDER [--resolution 1024] [NAME ...]

Folders of config.json alone are written; the models are built on torch's meta device and run on tensors without data,
as the dry run does. One picture at a time, bf16, gradient checkpointing, LoRA of rank 32 in both models.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
import as_package  # noqa: E402, F401  (registers the checkout as lavi_bridge)
import modern_sizes  # noqa: E402
import torch  # noqa: E402
import true_sizes  # noqa: E402
from lavi_bridge.training.dry_run import memory_estimate, models  # noqa: E402
from lavi_bridge.training.dry_run.report import Report, in_bytes  # noqa: E402
from lavi_bridge.training.recipe import read_recipe  # noqa: E402

RECIPES = Path(__file__).parents[2] / "training" / "recipes" / "modern"
LANGUAGE: dict[str, dict[str, Any]] = {
    "t5-large": true_sizes.LANGUAGE["t5-large"],
    "SmolLM2-135M": true_sizes.BEYOND_THE_PAPER["smollm2-135m"],
    "Qwen3-0.6B": {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": True,
    },
    "all-MiniLM-L6-v2": {
        "model_type": "bert",
        "vocab_size": 30522,
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "max_position_embeddings": 512,
    },
}
SIZES = {  # recipe -> name in modern_sizes.py; the latents' channels come with it
    "t5-large-sd35-medium": "sd35-medium",
    "qwen3-0.6b-flux-dev": "flux-dev",
    "qwen3-0.6b-z-image": "z-image",
    "smollm2-lumina2": "lumina2",
    "qwen3-0.6b-qwen-image": "qwen-image",
    "t5-large-pixart-sigma": "pixart-sigma",
    "t5-large-aura-flow": "aura-flow",
    "t5-large-chroma": "chroma",
    "t5-large-cosmos": "cosmos-2b",
    "qwen3-0.6b-anima": "cosmos-2b",
    "qwen3-0.6b-flux2-klein": "flux2-klein-4b",
    "qwen3-0.6b-ernie-image": "ernie-image",
    "t5-large-wan": "wan-1.3b",
    "smollm2-sana": "sana-1.6b",
    "minilm-kolors": "kolors",
}


def write(recipe_name: str, work: Path) -> Path:
    """The folders that a recipe names, without weights; returns the recipe with their paths."""
    import transformers

    recipe = read_recipe(RECIPES / f"{recipe_name}.toml")
    language, name = work / recipe.language.model, SIZES[recipe_name]
    config = transformers.AutoConfig.for_model(**LANGUAGE[language.name])
    language.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(language)
    true_sizes.tokenizer(config.model_type if config.model_type == "t5" else "llama").save_pretrained(language)
    vision = work / recipe.vision.model
    part = vision / ("unet" if name == "kolors" else "transformer")
    for folder, content in (
        (part, {**modern_sizes.VISION[name]}),
        (vision / "scheduler", modern_sizes.SCHEDULERS[name]),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        file = "scheduler_config.json" if folder.name == "scheduler" else "config.json"
        (folder / file).write_text(json.dumps(content))
    network: Any = modern_sizes.on_meta(name)
    network.save_config(part)
    return RECIPES / f"{recipe_name}.toml"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", default=sorted(SIZES))
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--resolution", type=int, help="default: the recipe's")
    parser.add_argument("--device", default="cpu", help="whose kernels are asked for what they keep")
    args = parser.parse_args(arguments)
    device = torch.device(args.device)
    print("recipe | vision | pixels | trained | weights | optimizer | gradients | kept | most")
    for name in args.recipes:
        path = write(name, args.work)
        os.chdir(args.work)
        recipe = read_recipe(path, [] if args.resolution is None else [f"data.resolution={args.resolution}"])
        report = Report()
        encoder, vision = models.language(report, recipe), models.vision(report, recipe)
        pair = models.pair(recipe, encoder, vision)
        side = recipe.data.resolution // vision.row.pixels
        shape = (vision.latent_channels, side, side)
        try:
            step = memory_estimate.training_step(pair, device, 1, shape, recipe.prompt.max_length)
        except ValueError as error:
            print(f"{name} | {error}", flush=True)
            continue
        trained = sum(p.numel() for p in pair.trained().values())
        optimizer = 8 * trained
        size = sum(p.numel() for p in vision.network.parameters())
        cells = [name, f"{size / 1e9:.1f} B", str(recipe.data.resolution), f"{trained / 1e6:.0f} M"]
        numbers = (step.weights, optimizer, step.gradients, step.kept, step.peak + optimizer)
        print(" | ".join([*cells, *(in_bytes(number) for number in numbers)]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
