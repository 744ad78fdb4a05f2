"""The own encoder as a bridge: the pictures of diffusers' own pipeline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lavi_bridge.lavi_core.checkpoint import BridgeCheckpoint
from lavi_bridge.training.commands import main
from lavi_bridge.training.models.sampling import noise_for
from PIL import Image

GOLDEN = Path(__file__).parents[2] / "golden" / "clip_full_unet"
TEXTS = ("two elephants in the forest", "a rabbit, forest in spring")


def write_pipeline(folder: Path, width: int = 24) -> Path:
    """Stable Diffusion 1.4's parts, tiny and random, in diffusers' layout; width: of what the U-Net hears."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    words = CLIPTokenizer.from_pretrained(GOLDEN / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id,
    )  # fmt: skip
    network = UNet2DConditionModel(
        sample_size=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=2,
    )
    for name, weight in network.named_parameters():
        if "attn2" in name:  # random ones hardly hear the text
            weight.data *= 4
    four: dict[str, Any] = {
        "block_out_channels": (8, 8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    }
    vae = AutoencoderKL(**four, norm_num_groups=4)
    scheduler: Any = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1,
        set_alpha_to_one=False,
    )  # fmt: skip
    none: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline = StableDiffusionPipeline(vae, CLIPTextModel(text), words, network, scheduler=scheduler, **none)
    pipeline.save_pretrained(folder)
    return folder


def test_its_pictures_are_those_of_diffusers_pipeline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from diffusers import StableDiffusionPipeline, UniPCMultistepScheduler

    folder, run = write_pipeline(tmp_path / "sd"), tmp_path / "run"
    (tmp_path / "p.txt").write_text("\n".join(TEXTS))
    bridge = tmp_path / "own.safetensors"
    assert main(["evaluate", "own", str(folder), "-o", str(bridge)]) == 0
    assert capsys.readouterr().out.strip() == str(bridge)
    models = ["--language-model", str(folder / "text_encoder"), "--vision-model", str(folder)]
    command = ["evaluate", "generate", str(bridge), *models, "--prompts", str(tmp_path / "p.txt"), "-o", str(run)]
    assert main([*command, "--steps", "5"]) == 0
    rows = [json.loads(line) for line in (run / "manifest.jsonl").read_text().splitlines()]

    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.scheduler = UniPCMultistepScheduler.from_config(pipeline.scheduler.config, final_sigmas_type="sigma_min")
    pipeline.set_progress_bar_config(disable=True)
    drawn = [np.asarray(Image.open(run / "samples" / f"{i:06d}.png")).astype(int) for i in range(2)]
    for row, ours in zip(rows, drawn, strict=True):
        noise = noise_for(row["noise"], (1, 4, 4, 4))
        how = {"height": 32, "width": 32, "num_inference_steps": 5, "guidance_scale": 7.5, "output_type": "np"}
        theirs: Any = pipeline(row["prompt"], latents=noise, **how).images[0]
        assert abs(ours - theirs * 255).max() <= 1.5
    assert abs(drawn[0] - drawn[1]).max() > 20


def test_it_reads_prompts_as_the_authors_do(tmp_path: Path) -> None:
    folder, bridge = write_pipeline(tmp_path / "sd"), tmp_path / "own.safetensors"
    assert main(["evaluate", "own", str(folder), "-o", str(bridge), "--prompt", "max_length=40"]) == 0
    made = BridgeCheckpoint.load(bridge)
    assert (made.config.prompt.max_length, made.config.prompt.language_mask) == (40, False)
    assert made.config.adapter.kind == "identity" and not made.adapter and not made.vision_lora
    assert made.config.language.fingerprint and made.config.vision.fingerprint


def test_an_encoder_that_is_not_all_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_pipeline(tmp_path / "sd", 32)
    assert main(["evaluate", "own", str(folder), "-o", str(tmp_path / "own.safetensors")]) == 2
    assert "gives width 24, the vision model hears 32" in capsys.readouterr().err
    assert main(["evaluate", "own", str(tmp_path / "nowhere"), "-o", str(tmp_path / "own.safetensors")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    shutil.rmtree(folder / "text_encoder")
    assert main(["evaluate", "own", str(folder), "-o", str(tmp_path / "own.safetensors")]) == 2
    assert "has no text_encoder/" in capsys.readouterr().err
