"""What a user without ComfyUI does with a bridge file, and the answers to the wrong files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lavi_bridge.lavi_core.conditioning import Conditioning
from lavi_bridge.training.commands import main
from lavi_bridge.training.demo.start import tokenizer
from lavi_bridge.training.loop.trainer import Trainer
from lavi_bridge.training.models import named, sampling
from lavi_bridge.training.models.find_language import language_for
from lavi_bridge.training.models.objective import Objective
from lavi_bridge.training.models.sampling import noise_for, scheduler_for
from lavi_bridge.training.models.vae import load_vae
from lavi_bridge.training.models.vision_model import load_vision_model
from lavi_bridge.training.recipe import read_recipe
from lavi_bridge.training.shapebench import VOCABULARIES
from PIL import Image

pytestmark = pytest.mark.usefixtures("on_cpu")


@pytest.fixture(scope="module")
def bridge(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bridge")
    recipe = folder / "recipe.toml"
    language, vision, vae = (json.dumps(str(tiny / n)) for n in ("text_encoder", "vision", "vae.safetensors"))
    recipe.write_text(f"""
name = "tiny"
output = {json.dumps(str(folder / "run"))}
steps = 2
batch_size = 4
precision = "fp32"
language = {{ model = {language}, rank = 2 }}
prompt = {{ max_length = 16 }}
adapter = {{}}
vision = {{ model = {vision}, vae = {vae}, target = "unet" }}
data = {{ kind = "shapebench", resolution = 32, count = 8 }}
""")
    return Trainer(read_recipe(recipe)).run()


def sample(bridge: Path, tiny: Path, output: Path, **other: Path) -> int:
    parts = {"language-model": tiny / "text_encoder", "vision-model": tiny / "vision", "vae": tiny / "vae.safetensors"}
    parts |= {key.replace("_", "-"): value for key, value in other.items()}
    options = [text for key, value in parts.items() for text in (f"--{key}", str(value))]
    options += ["-o", str(output), "--size", "32", "--steps", "2"]
    return main(["sample", str(bridge), "a red circle", "", *options])


def test_sample_writes_a_captioned_grid_that_the_seed_repeats(bridge: Path, tiny: Path, tmp_path: Path) -> None:
    assert sample(bridge, tiny, tmp_path / "a.png") == sample(bridge, tiny, tmp_path / "b.png") == 0
    first, second = (np.asarray(Image.open(tmp_path / name)) for name in ("a.png", "b.png"))
    assert first.shape[0] > 32 and np.array_equal(first, second)
    assert sample(bridge, tiny, tmp_path / "c.png", pictures=tmp_path / "alone" / "all") == 0
    sheet, alone = np.asarray(Image.open(tmp_path / "c.png")), sorted((tmp_path / "alone" / "all").iterdir())
    assert [path.name for path in alone] == ["1.png", "2.png"] and np.array_equal(sheet, first)
    pictures = [np.asarray(Image.open(path)) for path in alone]
    assert all(picture.shape == (32, 32, 3) for picture in pictures) and not np.array_equal(pictures[0], pictures[1])
    left = np.lib.stride_tricks.sliding_window_view(sheet, (32, 32, 3))[:, : sheet.shape[1] // 2 - 15, 0]
    assert (left == pictures[0]).all(axis=(-1, -2, -3)).any()  # it lies in the sheet as it is


def test_another_language_model_is_refused(
    bridge: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from transformers import BertConfig, BertModel

    words = tokenizer(VOCABULARIES["small"], 24)
    sizes: Any = {
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 24,
    }
    BertModel(BertConfig(vocab_size=len(words), hidden_size=64, **sizes)).save_pretrained(tmp_path / "other")
    words.save_pretrained(tmp_path / "other")
    assert sample(bridge, tiny, tmp_path / "a.png", language_model=tmp_path / "other") == 2
    error = capsys.readouterr().err
    assert "hidden 32" in error and "hidden 64" in error and not (tmp_path / "a.png").exists()


def test_another_vision_model_is_refused(
    bridge: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DConditionModel

    for width, message in ((40, "context width 24"), (24, "other weights")):
        torch.manual_seed(width)
        UNet2DConditionModel(
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=width,
            attention_head_dim=2,
        ).save_pretrained(tmp_path / "vision" / "unet")
        config = tmp_path / "vision" / "unet" / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"latent_scale": 1.0}))
        FlowMatchEulerDiscreteScheduler().save_pretrained(tmp_path / "vision" / "scheduler")
        assert sample(bridge, tiny, tmp_path / "a.png", vision_model=tmp_path / "vision") == 2
        assert message in capsys.readouterr().err


def test_a_truncated_bridge_is_refused(bridge: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "cut.safetensors").write_bytes(bridge.read_bytes()[:-100])
    assert sample(tmp_path / "cut.safetensors", tiny, tmp_path / "a.png") == 2
    assert "cut short" in capsys.readouterr().err


@pytest.mark.parametrize("steps", [4, 20, 30])
def test_noise_levels_are_those_of_comfyuis_simple_scheduler(tmp_path: Path, steps: int) -> None:
    """comfy/samplers.py simple_scheduler: every (1000 / steps)-th level from the noisiest down, then zero."""
    from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(tmp_path / "flow")
    t = torch.arange(1, 1001) / 1000
    levels = {"flow": 3 * t / (1 + 2 * t)}
    ddpm = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    ddpm.save_pretrained(tmp_path / "eps")
    levels["eps"] = ((1 - ddpm.alphas_cumprod) / ddpm.alphas_cumprod).sqrt()
    for name, sigmas in levels.items():
        expected = [float(sigmas[-(1 + int(i * 1000 / steps))]) for i in range(steps)] + [0.0]
        found = scheduler_for(Objective.load(tmp_path / name), steps).sigmas
        torch.testing.assert_close(found.float(), torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_a_samplers_taste_in_the_config_changes_no_noise_level() -> None:
    for config in ({"beta_schedule": "scaled_linear"}, {"shift": 3.0}):
        kind = "flow" if "shift" in config else "epsilon"
        taste = {"use_karras_sigmas": True, "use_dynamic_shifting": True, "use_exponential_sigmas": True}
        plain, other = (scheduler_for(Objective(kind=kind, scheduler=c), 4) for c in (config, {**config, **taste}))
        assert torch.equal(plain.sigmas, other.sigmas)


def test_contexts_of_different_lengths_are_predicted_apart(tiny: Path) -> None:
    vision = load_vision_model(tiny / "vision", "unet")
    generator = torch.Generator().manual_seed(0)
    long, short = (torch.randn(1, length, 24, generator=generator) for length in (6, 4))
    noise = noise_for(0, (2, 4, 4, 4))
    apart = sampling.sample(vision, Conditioning(long), Conditioning(short), noise, 2)
    # Attention over a sequence and over its repetition is the same.
    long, short = Conditioning(long.repeat(1, 2, 1)), Conditioning(short.repeat(1, 3, 1))
    joined = sampling.sample(vision, long, short, noise, 2)
    torch.testing.assert_close(apart, joined, rtol=1e-3, atol=1e-3)


def test_an_absent_device_is_named(bridge: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert sample(bridge, tiny, tmp_path / "a.png", device=Path("warp")) == 2
    assert "there is no device warp here; known: " in capsys.readouterr().err


def test_a_vision_model_brings_its_own_vae_and_size(
    bridge: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The demo's VAE is the demo's alone: it would draw noise from another model's latents without a word."""
    folder = tmp_path / "pipeline"
    shutil.copytree(tiny / "vision", folder)
    words = [str(bridge), "a red circle", "--language-model", str(tiny / "text_encoder"), "--vision-model", str(folder)]
    words += ["-o", str(tmp_path / "a.png"), "--steps", "1"]
    assert main(["sample", *words]) == 2
    assert f"{folder} has no vae/ or vqvae/" in capsys.readouterr().err
    load_vae(tiny / "vae.safetensors").save_pretrained(folder / "vae")
    assert main(["sample", *words]) == 0
    assert main(["sample", *words[:-4], "-o", str(tmp_path / "b.png"), "--steps", "1", "--size", "64"]) == 0
    small, large = (Image.open(tmp_path / name).size for name in ("a.png", "b.png"))
    assert large[0] > small[0]


def test_the_bridges_own_language_model_is_looked_for(
    bridge: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(tiny / "text_encoder", tmp_path / "models" / "its own")
    (tmp_path / "models" / "broken").mkdir()
    (tmp_path / "models" / "broken" / "config.json").write_text("{}")
    monkeypatch.setenv("LAVI_BRIDGE_MODELS", str(tmp_path / "no demo"))
    options = ["--vision-model", str(tiny / "vision"), "--vae", str(tiny / "vae.safetensors"), "--size=32", "--steps=2"]
    command = ["sample", str(bridge), "a red circle", *options, "-o", str(tmp_path / "a.png")]
    with caplog.at_level("INFO"):
        assert main([*command, "--language-models", str(tmp_path / "models")]) == 0
    assert "its own, which the bridge was made for" in caplog.text and "as it is written" not in caplog.text
    assert language_for(named.bridge("demo:own"), None) == named.WEIGHTS / "vision" / "text_encoder"
    monkeypatch.setenv("LAVI_BRIDGE_LANGUAGE_MODELS", str(tmp_path / "models"))
    assert main([*command[:2], "a (red:1.3) circle", *command[3:]]) == 0
    assert "(red:1.3) is read as it is written" in caplog.text


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--steps=0", "--steps must be at least 1, got 0"),
        ("--size=100", "--size must be a multiple of 8 pixels"),
        ("--size=0", "--size must be a multiple of 8 pixels"),
        ("--guidance=nan", "--guidance must be a number"),
        ("--language-models=nowhere", "there is no folder of language models nowhere"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    bridge: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture, option: str, message: str
) -> None:
    parts = ["--vision-model", str(tiny / "vision"), "--vae", str(tiny / "vae.safetensors")]
    if not option.startswith("--language"):
        parts += ["--language-model", str(tiny / "text_encoder")]
    assert main(["sample", str(bridge), "a", *parts, "-o", str(tmp_path / "a.png"), option]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "a.png").exists()
