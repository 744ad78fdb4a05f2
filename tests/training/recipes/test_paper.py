"""Every pair of the paper trains, saves, samples and resumes by its recipe alone; so do the ablations."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lavi_bridge.lavi_core import adapters
from lavi_bridge.lavi_core.checkpoint import BridgeCheckpoint
from lavi_bridge.lavi_core.conditioning import Conditioning
from lavi_bridge.tests.training.paper import POOLED, RECIPES
from lavi_bridge.training.commands import main
from lavi_bridge.training.loop.trainer import Trainer
from lavi_bridge.training.models.pipeline import Pipeline
from lavi_bridge.training.models.sampling import sample as draw_latents
from lavi_bridge.training.models.vision_model import load_vision_model
from lavi_bridge.training.recipe import read_recipe

pytestmark = pytest.mark.usefixtures("on_cpu")

PAIRS = sorted(path.stem for path in RECIPES.glob("*.toml") if not path.stem.endswith("-hour"))
TARGETS = {"sd14": "sd1", "ldm": "ldm", "pixart": "pixart", "sdxl": "sdxl"}
SMALL = ["batch_size=2", "save_every=2", "keep=3", "data.resolution=32", "adapter.learning_rate=1e-3"]
SMALL += ["sample.every=3", "sample.steps=2"]


@pytest.fixture
def work(paper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory in which the recipes find what they name."""
    for name in ("models", "data"):
        (tmp_path / name).symlink_to(paper / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(pair: str, *changes: str, steps: int = 2, resume: bool = False) -> tuple[Trainer, Path]:
    trainer = Trainer(read_recipe(RECIPES / f"{pair}.toml", [*SMALL, f"steps={steps}", *changes]), resume)
    return trainer, trainer.run()


def sample(trainer: Trainer, bridge: Path, vision: str = "") -> int:
    """``lavi-bridge sample`` with the recipe's own models."""
    recipe = trainer.recipe
    options = ["--language-model", recipe.language.model, "--vision-model", vision or recipe.vision.model]
    options += ["--vae", recipe.vision.vae, "--size", "32", "--steps", "2", "--guidance", "7.5", "-o", "a.png"]
    return main(["sample", str(bridge), "a red circle", "a blue square", *options])


def agrees(trainer: Trainer, bridge: Path) -> bool:
    """Whether the file, loaded anew, predicts what the trained pair predicts; the file is half precision."""
    recipe, prompts = trainer.recipe, ["a red circle", "two blue square left of a green circle"]
    pipeline = Pipeline.load(bridge, recipe.language.model, recipe.vision.model, recipe.vision.vae)
    x, t = torch.randn(2, 4, 4, 4, generator=torch.manual_seed(3)), torch.tensor([900, 300])
    trainer.pair.eval()
    with torch.no_grad():
        expected = trainer.pair(trainer.text_inputs(prompts), x, t)
        found = pipeline.vision.predict(x, t, pipeline.condition(prompts))
        swapped = pipeline.vision.predict(x, t, pipeline.condition(prompts[::-1]))
    heard = (swapped - expected).abs().max()
    return bool((found - expected).abs().max() < min(5e-3 * float(expected.abs().max()), 0.1 * float(heard)))


@pytest.mark.parametrize("pair", PAIRS)
def test_a_pair_trains_saves_samples_and_resumes(pair: str, work: Path) -> None:
    trainer, bridge = train(pair, steps=3)
    checkpoint = BridgeCheckpoint.load(bridge)
    config = checkpoint.config
    assert config.vision.target == TARGETS[pair.rpartition("-")[2]]
    assert config.vision.objective == "epsilon" and config.vision.latent_scale == pytest.approx(0.18215)
    assert config.adapter.inner_width == (config.adapter.in_width + config.adapter.out_width) // 2
    assert config.adapter.pooled_width == (POOLED if pair.endswith("sdxl") else None)
    for path, delta in {**checkpoint.language_lora, **checkpoint.vision_lora}.items():
        assert delta.up.abs().max() > 0, f"{path} was not trained"
    fresh = adapters.build(config.adapter).state_dict()
    assert all(not torch.equal(fresh[key], value.float()) for key, value in checkpoint.adapter.items())
    assert (bridge.parent / "samples" / "step-0000003.png").is_file()
    assert agrees(trainer, bridge)
    assert sample(trainer, bridge) == 0 and (work / "a.png").stat().st_size > 1000

    lines = (bridge.parent / "log.jsonl").read_text().splitlines()
    shutil.rmtree(bridge.parent / "state" / "step-0000003")
    train(pair, steps=3, resume=True)
    again = (bridge.parent / "log.jsonl").read_text().splitlines()
    assert len(again) == 3 and json.loads(again[2])["loss"] == json.loads(lines[2])["loss"]


@pytest.mark.parametrize(
    ("pair", "changes", "groups"),
    [
        ("t5-large-sd14", ["adapter.kind=linear"], {"adapter", "language", "vision"}),
        ("t5-large-sd14", ["language.train=frozen"], {"adapter", "vision"}),
        ("t5-large-sd14", ["vision.train=frozen"], {"adapter", "language"}),
        ("t5-large-sd14", ["language.train=frozen", "vision.train=frozen"], {"adapter"}),
        ("t5-large-sdxl", ["adapter.kind=linear"], {"adapter", "language", "vision"}),
        (
            "clip-l-sd14",
            ["language.model=models/stable-diffusion-v1-4/text_encoder"],
            {"adapter", "language", "vision"},
        ),
    ],
)
def test_an_ablation_is_an_override(pair: str, changes: list[str], groups: set[str], work: Path) -> None:
    trainer, bridge = train(pair, *changes)
    assert {key.partition(".")[0] for key in trainer.trained} == groups
    checkpoint = BridgeCheckpoint.load(bridge)
    assert bool(checkpoint.language_lora) == ("language" in groups)
    assert bool(checkpoint.vision_lora) == ("vision" in groups)
    assert agrees(trainer, bridge) and sample(trainer, bridge) == 0


def test_another_kind_of_vision_model_is_refused_with_both_sides_named(work: Path, capsys: Any) -> None:
    trainer, bridge = train("t5-large-sd14")
    assert sample(trainer, bridge, vision="models/stable-diffusion-xl-base-1.0") == 2
    error = capsys.readouterr().err
    assert "was made for stable-diffusion-v1-4 (sd1, context width 768)" in error
    assert "models/stable-diffusion-xl-base-1.0 is of sdxl with context width 48" in error
    with pytest.raises(ValueError, match=r"is of the vision target sd1 .*, 'sdxl' was asked for: leave the target out"):
        train("t5-large-sd14", "vision.target=sdxl", "output=other")


def test_a_bridge_without_a_pooled_vector_is_refused_where_one_is_taken(work: Path, capsys: Any) -> None:
    trainer, bridge = train("t5-large-sdxl")
    checkpoint = BridgeCheckpoint.load(bridge)
    without = replace(checkpoint.config, adapter=replace(checkpoint.config.adapter, pooled_width=None))
    kept = {key: value for key, value in checkpoint.adapter.items() if not key.startswith("pooled.")}
    assert len(kept) < len(checkpoint.adapter)
    replace(checkpoint, config=without, adapter=kept).save(work / "without.safetensors")
    assert sample(trainer, work / "without.safetensors") == 2
    message = f"takes a pooled vector of width {POOLED}, {work / 'without.safetensors'} gives none"
    assert message in capsys.readouterr().err


def test_a_transformer_of_1024_pixels_is_told_the_size(work: Path) -> None:
    """PixArt-XL-2-1024-MS embeds the picture's resolution and shape; against diffusers' own call."""
    from diffusers import PixArtTransformer2DModel

    sizes: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 12, "cross_attention_dim": 24}
    sizes |= {"sample_size": 128, "num_layers": 1, "caption_channels": 40}
    PixArtTransformer2DModel(**sizes).save_pretrained("large/transformer")
    shutil.copytree("models/PixArt-XL-2-512x512/scheduler", "large/scheduler")
    vision = load_vision_model("large")
    x, t, context = torch.randn(2, 4, 8, 4), torch.tensor([5, 700]), torch.randn(2, 6, 40)
    told = {"resolution": torch.tensor([[64.0, 32.0]] * 2), "aspect_ratio": torch.tensor([[2.0]] * 2)}
    with torch.no_grad():
        found = vision.predict(x, t, Conditioning(context))
        expected = vision.network(x, context, t, told).sample
        other = vision.network(x, context, t, told | {"resolution": torch.tensor([[32.0, 32.0]] * 2)}).sample
    assert torch.equal(found, expected) and not torch.equal(found, other)


def test_what_is_heard_beside_the_context_counts_on_both_sides_of_the_guidance(work: Path) -> None:
    """One batch of both sides gives what each side for itself gives: pooled vectors and masks are not mixed up."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 4, 4, 4, generator=generator)
    for name, width, part in (("stable-diffusion-xl-base-1.0", 48, "pooled"), ("PixArt-XL-2-512x512", 40, "mask")):
        vision = load_vision_model(f"models/{name}")
        context = torch.randn(2, 1, 6, width, generator=generator)
        masks = torch.tensor([[[1, 1, 1, 1, 0, 0]], [[1, 1, 0, 0, 0, 0]]]).bool()
        more = torch.randn(2, 1, POOLED, generator=generator) if part == "pooled" else masks
        heard, unheard = (Conditioning(context[i], **{part: more[i]}) for i in (0, 1))
        joined = draw_latents(vision, heard, unheard, noise, steps=2, guidance=3.0)
        sides = []
        for side in (heard, unheard):  # without guidance the prediction of one side alone
            sides.append(draw_latents(vision, side, side, noise, steps=1, guidance=1.0))
        first = draw_latents(vision, heard, unheard, noise, steps=1, guidance=3.0)
        torch.testing.assert_close(first, sides[1] + 3 * (sides[0] - sides[1]), rtol=1e-3, atol=1e-3)
        other = draw_latents(vision, heard, replace(unheard, **{part: more[0]}), noise, steps=2, guidance=3.0)
        assert (joined - other).abs().max() > 1e-3
