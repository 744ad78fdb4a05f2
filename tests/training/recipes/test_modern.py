"""Every recipe of the newer vision models trains, resumes to the bit, saves, loads and draws, at tiny sizes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lavi_bridge.lavi_core.checkpoint import BridgeCheckpoint
from lavi_bridge.lavi_core.vision import VISION_TARGETS
from lavi_bridge.tests.training import dits
from lavi_bridge.tests.training.modern import RECIPES, VISION, linked, write_models
from lavi_bridge.training.commands import main
from lavi_bridge.training.dry_run import dry_run
from lavi_bridge.training.loop.trainer import Trainer
from lavi_bridge.training.models.pipeline import Pipeline
from lavi_bridge.training.models.vae import decode, encode, load_vae
from lavi_bridge.training.models.vision_model import load_vision_model
from lavi_bridge.training.recipe import read_recipe

SMALL = ["batch_size=2", "accumulation=1", "save_every=2", "keep=3", "data.resolution=64", "data.buckets=false"]
SMALL += [
    "prompt.max_length=12",
    "adapter.learning_rate=1e-3",
    "sample.every=3",
    "sample.steps=2",
    "optimizer.warmup=0",
]


T5 = Path(__file__).parents[2] / "golden" / "t5_unet" / "tokenizer"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("modern")
    write_models(folder)
    return folder


@pytest.fixture
def work(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return linked(models, tmp_path, monkeypatch)


@pytest.fixture(params=sorted(VISION))
def pair(request: pytest.FixtureRequest) -> str:
    return request.param


def trainer_of(pair: str, *changes: str, steps: int = 3, resume: bool = False) -> Trainer:
    return Trainer(read_recipe(RECIPES / f"{pair}.toml", [*SMALL, f"steps={steps}", *changes]), resume)


def test_every_recipe_has_its_models() -> None:
    assert {path.stem for path in RECIPES.glob("*.toml")} == set(VISION)


def test_a_recipe_trains_resumes_to_the_bit_and_draws(pair: str, work: Path) -> None:
    trainer = trainer_of(pair, "precision=fp32")
    bridge = trainer.run()
    checkpoint = BridgeCheckpoint.load(bridge)
    vision, row = checkpoint.config.vision, VISION_TARGETS[VISION[pair][1]]
    assert vision.target == row.name and vision.latent_channels == dits.FAMILIES[VISION[pair][1]].channels
    for path, delta in {**checkpoint.language_lora, **checkpoint.vision_lora}.items():
        assert delta.up.abs().max() > 0, f"{path} was not trained"
    assert list(checkpoint.vision_lora) == trainer.pair.sites["vision"]
    assert (bridge.parent / "samples" / "step-0000003.png").is_file()
    assert agrees(trainer, bridge)
    recipe = trainer.recipe
    options = ["--language-model", recipe.language.model, "--vision-model", recipe.vision.model]
    options += ["--vae", recipe.vision.vae, "--size", "64", "--steps", "2", "--guidance", "4", "-o", "a.png"]
    assert main(["sample", str(bridge), "a red circle", "a blue square", *options]) == 0

    lines = (bridge.parent / "log.jsonl").read_text().splitlines()
    shutil.rmtree(bridge.parent / "state" / "step-0000003")
    trainer_of(pair, "precision=fp32", resume=True).run()
    again = (bridge.parent / "log.jsonl").read_text().splitlines()
    assert len(again) == 3 and json.loads(again[2])["loss"] == json.loads(lines[2])["loss"]


@pytest.mark.parametrize(
    "pair", ["qwen3-0.6b-flux-dev", "qwen3-0.6b-z-image", "t5-large-aura-flow", "minilm-kolors", "smollm2-lumina2"]
)
def test_tokens_of_an_adapters_own_are_all_heard_whatever_becomes_of_padding(pair: str, work: Path) -> None:
    """By models that take no mask, leave masked tokens out, or hear fewer tokens than the prompt has."""
    changes = ["adapter.kind=timestep_resampler", "adapter.tokens=5", "adapter.depth=1", "prompt.vision_mask=true"]
    changes += ["precision=fp32", "prompt.language_mask=true", "prompt.max_length=300", "prompt.cut_template=false"]
    recipe = read_recipe(RECIPES / f"{pair}.toml", [*SMALL, "steps=1", *changes])
    assert dry_run(recipe).problems == []
    trainer = Trainer(recipe)
    assert agrees(trainer, trainer.run())
    if pair == "t5-large-aura-flow":
        with pytest.raises(ValueError, match=r"hears at most 256 tokens: set adapter\.tokens = 256 or less"):
            trainer_of(pair, *changes, "adapter.tokens=257", "output=other")


ASKS = ["adapter.kind=token_queries", f"adapter.query_tokenizer={T5}", "adapter.depth=1", "adapter.heads=2"]


@pytest.mark.parametrize("pair", ["t5-large-chroma", "qwen3-0.6b-anima", "smollm2-sana"])
def test_a_prompt_that_asks_is_heard_alone_as_it_is_trained_in_company(pair: str, work: Path) -> None:
    """By models that want a zero vector behind the prompt, zeros up to a length, or a mask."""
    trainer = trainer_of(pair, *ASKS, "precision=fp32", "sample.every=0", steps=1)
    bridge, recipe = trainer.run(), trainer.recipe
    assert agrees(trainer, bridge)
    pipeline = Pipeline.load(bridge, recipe.language.model, recipe.vision.model, recipe.vision.vae)
    x = torch.randn(2, pipeline.vision.latent_channels, 4, 4, generator=torch.manual_seed(3))
    t, prompts = pipeline.vision.timesteps(torch.tensor([0.9, 0.3]), x), ["a", "two blue square left of a green circle"]
    assert pipeline.bridge is not None
    with torch.no_grad():
        expected = trainer.pair(trainer.text_inputs(prompts), x, t)
        rows = zip(x.split(1), t.split(1), prompts, strict=True)
        alone = torch.cat([pipeline.vision.predict(*row, pipeline.bridge([prompt])) for *row, prompt in rows])
    assert (alone - expected).abs().max() < 1e-3 * expected.abs().max()


def test_a_prompt_that_asks_needs_a_mask(work: Path) -> None:
    with pytest.raises(ValueError, match=r"gives as many tokens as a caption has, the vision model .+ takes no mask"):
        trainer_of("t5-large-sd35-medium", *ASKS)


def agrees(trainer: Trainer, bridge: Path) -> bool:
    """Whether the file, loaded anew, predicts what the trained pair predicts; the file is half precision."""
    recipe, prompts = trainer.recipe, ["a red circle", "two blue square left of a green circle"]
    pipeline = Pipeline.load(bridge, recipe.language.model, recipe.vision.model, recipe.vision.vae)
    x = torch.randn(2, pipeline.vision.latent_channels, 4, 4, generator=torch.manual_seed(3))
    t = pipeline.vision.timesteps(torch.tensor([0.9, 0.3]), x)
    trainer.pair.eval()
    assert pipeline.bridge is not None
    with torch.no_grad():
        expected = trainer.pair(trainer.text_inputs(prompts), x, t)
        found = pipeline.vision.predict(x, t, pipeline.bridge(prompts, t), recipe.vision.embedded_guidance)
        swapped = pipeline.vision.predict(x, t, pipeline.bridge(prompts[::-1], t), recipe.vision.embedded_guidance)
    heard = (swapped - expected).abs().max()
    return bool((found - expected).abs().max() < min(5e-3 * float(expected.abs().max()), 0.2 * float(heard)))


def test_a_step_in_bf16_with_gradient_checkpointing(pair: str, work: Path) -> None:
    """The same prediction, and gradients that are the same, finite, and there for all that is trained."""
    steps = []
    for value in ("true", "false"):
        changes = [f"gradient_checkpointing={value}", f"output=checkpointing-{value}"]
        # Chroma runs its prompts one by one in one of the ways, and draws what drops out in another order.
        trainer = trainer_of(pair, *changes, "vision.dropout=0.0")
        one, vision = trainer.pair.train(), trainer.pair.vision_model
        assert any(p.dtype == torch.bfloat16 for p in vision.network.parameters())
        x = torch.randn(2, vision.latent_channels, 4, 4, generator=torch.Generator().manual_seed(3))
        text = trainer.text_inputs(["a red circle", "two blue square left of a green circle"])
        torch.manual_seed(5)  # for what drops out
        with torch.autocast("cpu", torch.bfloat16):
            found = one(text, x, vision.timesteps(torch.tensor([0.9, 0.3]), x))
        found.float().square().mean().backward()
        gradients = {key: p.grad for key, p in one.trained().items() if p.grad is not None}
        assert all(torch.isfinite(g).all() for g in gradients.values()) and torch.isfinite(found).all()
        assert all(key in gradients for key in one.trained() if "lora_A" not in key)
        steps.append((found, gradients))
    assert torch.allclose(steps[0][0], steps[1][0], rtol=0, atol=1e-2 * float(steps[0][0].abs().max()))
    for key, gradient in steps[0][1].items():
        assert float((gradient - steps[1][1][key]).norm()) <= 0.05 * float(gradient.norm()) + 1e-9, key


@pytest.mark.parametrize("pair", ["qwen3-0.6b-z-image", "smollm2-lumina2", "t5-large-chroma", "qwen3-0.6b-flux2-klein"])
def test_a_dry_run_finds_nothing_wrong_and_counts_the_memory(pair: str, work: Path) -> None:
    """Three of them ask for the lengths of prompts, of which there are none; the fourth's VAE has a norm."""
    report = dry_run(read_recipe(RECIPES / f"{pair}.toml", SMALL))
    assert not report.problems and "most at a time" in str(report), str(report)


@pytest.mark.parametrize("name", sorted(VISION))
def test_latents_are_what_diffusers_makes_of_pictures(name: str, models: Path) -> None:
    """Encoded, turned into what the network sees, back again and decoded; seen as the models' pipelines count it."""
    folder, family, _ = VISION[name]
    vae: Any = load_vae(models / "models" / folder / "vae")
    vision = load_vision_model(models / "models" / folder)
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    raw = encode(vae, pictures)
    cells = 64 // dits.FAMILIES[family].pixels
    assert raw.shape == (2, vision.latent_channels, cells, cells)
    seen = vision.latents.seen(raw)
    config = dict(vae.config)
    if "scaling_factor" in config:
        expected = (raw - (config.get("shift_factor") or 0)) * config["scaling_factor"]
    elif "latents_mean" in config:
        mean, std = (torch.tensor(config[key]).view(1, 16, 1, 1) for key in ("latents_mean", "latents_std"))
        expected = (raw - mean) / std
    else:
        expected = raw
    assert torch.allclose(seen, expected, atol=1e-5)
    assert torch.allclose(vision.latents.raw(seen), raw, atol=1e-5)
    assert decode(vae, raw).shape == (2, 64, 64, 3)


@pytest.mark.parametrize(
    ("pair", "change", "message"),
    [
        (
            "t5-large-sd35-medium",
            "prompt.vision_mask=true",
            r"takes no mask and attends to every token: set prompt\.vis",
        ),
        ("smollm2-lumina2", "prompt.max_length=300", r"prompt\.max_length is 300, .* hears at most 299 tokens"),
        ("t5-large-wan", "prompt.max_length=513", "hears at most 512 tokens"),
        (
            "qwen3-0.6b-qwen-image",
            "data.resolution=80",
            r"data\.resolution must be a multiple of 32 pixels for qwen_im",
        ),
        ("smollm2-sana", "data.resolution=48", r"data\.resolution must be a multiple of 32 pixels for sana, got 48"),
    ],
)
def test_what_a_model_cannot_hear_or_draw_is_refused(pair: str, change: str, message: str, work: Path) -> None:
    with pytest.raises(ValueError, match=message):
        trainer_of(pair, change)
