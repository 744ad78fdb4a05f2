"""What an hour of one GPU buys: the parts of a recipe by their FLOPs, at a speed that was measured.

    python tests/benchmarks/hour.py RECIPE.toml --pictures 40000 [--images-per-second 42.1]

A recipe of ``training/recipes/paper`` with T5-Large, frozen, at true size on torch's meta device: no weights, no GPU.
The speed is that of T5-Large + SD 1.4 as the paper trains it, at 512 pixels (42.1 images/s on one H200,
training/README.md); all else is computed from it: a part takes as long as its FLOPs do at the same FLOP/s. Small steps
wait longer for the CPU than large ones, so SDXL's are likely faster than this says.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(Path(__file__).parent)]

import as_package  # noqa: E402, F401  (registers the checkout as lavi_bridge)
import diffusers  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
import true_sizes  # noqa: E402
from lavi_bridge.lavi_core import adapters  # noqa: E402
from lavi_bridge.lavi_core.conditioning import HiddenStates  # noqa: E402
from lavi_bridge.lavi_core.vision import VISION_TARGETS  # noqa: E402
from lavi_bridge.training.models.trainable import prepare  # noqa: E402
from lavi_bridge.training.recipe import Recipe, VisionSection, read_recipe  # noqa: E402
from plan import count as of_the_paper  # noqa: E402
from plan import flash  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

MEASURED = 42.1  # images/s of T5-Large + SD 1.4, 512 pixels, batch 16, one H200
VISION = {"models/stable-diffusion-v1-4": "sd14", "models/stable-diffusion-xl-base-1.0": "sdxl"}
CLIPS: dict[str, list[dict[str, Any]]] = {  # the own encoder's, which teaches
    "sd14": [{"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}],
    "sdxl": [
        {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
        {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20},
    ],
}
POOLED = {"sd14": None, "sdxl": 1280}


def flops(run: Any, *inputs: Any, backward: bool = False) -> float:
    with FlopCounterMode(display=False) as counter:
        out = run(*inputs)
        if backward:
            out.sum().backward()
    return counter.get_total_flops()


@patch.object(nn.functional, "scaled_dot_product_attention", flash)
def parts(recipe: Recipe, pictures: int) -> dict[str, tuple[int, float]]:
    """name -> how many, and the FLOPs of one."""
    name, side = VISION[recipe.vision.model], recipe.data.resolution // 8
    length = recipe.prompt.max_length
    with torch.device("meta"), torch.no_grad():
        config: Any = transformers.AutoConfig.for_model(**true_sizes.LANGUAGE["t5-large"])
        language: Any = transformers.T5EncoderModel(config)
        ids = torch.zeros(1, length, dtype=torch.long)
        of_language = flops(lambda: language(ids).last_hidden_state)
        of_teacher = sum(
            flops(
                transformers.CLIPTextModel(transformers.CLIPTextConfig(**sizes)), torch.zeros(1, 77, dtype=torch.long)
            )  # type: ignore[arg-type]
            for sizes in CLIPS[name]
        )
        sizes: dict[str, Any] = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2}
        sizes |= {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
        vae: Any = diffusers.AutoencoderKL.from_config(sizes)
        of_vae = flops(vae.encode, torch.zeros(1, 3, recipe.data.resolution, recipe.data.resolution))
    network, adapter = _trained(recipe, name)
    states = torch.zeros(1, length, config.d_model, dtype=torch.bfloat16, device="meta")
    hidden = HiddenStates(states, torch.ones(1, length, dtype=torch.bool, device="meta"))
    of_adapter = flops(lambda: adapter(hidden).context, backward=True)
    x = torch.zeros(1, 4, side, side, dtype=torch.bfloat16, device="meta")
    added = {}
    if POOLED[name]:
        added = {"text_embeds": torch.zeros(1, 1280, device="meta", dtype=torch.bfloat16)}
        added |= {"time_ids": torch.zeros(1, 6, device="meta", dtype=torch.bfloat16)}
    t = torch.zeros(1, dtype=torch.long, device="meta")

    def predict() -> Any:
        return network(x, t, encoder_hidden_states=adapter(hidden).context, added_cond_kwargs=added).sample

    of_step = flops(predict, backward=True)
    with torch.no_grad():
        of_target = flops(predict)
    align = recipe.align
    found = {
        "latents": (pictures, of_vae),
        "text states": (pictures, of_language),
        "alignment": (align.steps * align.batch_size, of_teacher + of_adapter),
        "steps on the own encoder's prediction": (align.prediction_steps * recipe.batch_size, of_step + of_target),
        "steps on pictures": ((recipe.steps - align.prediction_steps) * recipe.batch_size, of_step),
    }
    return {part: sizes for part, sizes in found.items() if sizes[0]}


def _trained(recipe: Recipe, name: str) -> tuple[Any, Any]:
    if recipe.language.train != "frozen":
        raise ValueError("the hour's recipes have a frozen language model, whose states are computed once")
    with torch.device("meta"):
        unet: dict[str, Any] = true_sizes.VISION[name]
        network: Any = diffusers.UNet2DConditionModel.from_config(unet)
        widths = {"in_width": 1024, "out_width": unet["cross_attention_dim"], "pooled_width": POOLED[name]}
        kind, options = recipe.adapter.kind, recipe.adapter.options()
        adapter = adapters.build(adapters.configure(kind, inner=recipe.adapter.inner_width, **widths, **options))
        prepare(network, VisionSection(model="", vae=""), VISION_TARGETS["unet"].sites(network))
    return network.to(torch.bfloat16).train(), adapter.to(torch.bfloat16).train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--pictures", type=int, required=True, help="in the data set, all of which get latents")
    parser.add_argument("--images-per-second", type=float, default=MEASURED)
    args = parser.parse_args()
    speed = args.images_per_second * of_the_paper().step
    found = parts(read_recipe(args.recipe), args.pictures)
    print(f"{args.recipe}, computed at {speed / 1e12:.0f} TFLOP/s\n")
    print("| part | how many | TFLOP of one | minutes |\n|---|---|---|---|")
    for part, (number, cost) in found.items():
        print(f"| {part} | {number:,} | {cost / 1e12:.3f} | {number * cost / speed / 60:.1f} |")
    print(f"| together | | | **{sum(number * cost for number, cost in found.values()) / speed / 60:.0f}** |")


if __name__ == "__main__":
    main()
