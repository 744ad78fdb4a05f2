"""The start of the demo's vision model: what its text encoder is taught, and that all parts are written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.lavi_core.prompt import PromptRecipe
from lavi_bridge.training.demo.start import StartRecipe, TextEncoderSection, build, reading_task
from lavi_bridge.training.models.vision_model import load_vision_model
from lavi_bridge.training.shapebench import VOCABULARIES, Object, Scene

SMALL = VOCABULARIES["small"]
MANY = VOCABULARIES["small, many words"]
RED = Object("red", "circle", "striped", 31, 64, 22)
BLUE = Object("blue", "cross", "solid", 97, 64, 22)
# Places in the vocabulary: [colour, shape, texture, side, count].
LEFT, RIGHT = 1, 2


def test_both_objects_of_a_relation_are_told_apart() -> None:
    scene = Scene("spatial", (RED, BLUE), "left of")
    rows = reading_task(scene, "a scarlet ball to the left of a blue cross", SMALL)
    assert rows == [[0, 0, -100, LEFT, 0]] * 7 + [[2, 3, -100, RIGHT, 0]] * 3  # the joint belongs to the first
    assert reading_task(scene, "red circle left of blue cross", SMALL)[3:] == [
        [0, 0, -100, LEFT, 0],
        *[[2, 3, -100, RIGHT, 0]] * 2,
    ]


def test_words_of_several_parts_move_the_second_object() -> None:
    scene = Scene("spatial", (BLUE, RED), "above")
    rows = reading_task(scene, "one sky blue letter x up from one red round shape", MANY)
    above, below = 3, 4
    assert rows == [[2, 3, -100, above, 0]] * 7 + [[0, 0, -100, below, 0]] * 4


def test_textures_are_read_where_they_are_named() -> None:
    rows = reading_task(Scene("texture", (RED, BLUE)), "striped red circle and solid blue cross", SMALL)
    assert rows == [[0, 0, 1, 0, 0]] * 4 + [[2, 3, 0, 0, 0]] * 3


def test_a_count_belongs_to_every_word() -> None:
    for number, text in ((2, "a picture of a pair of red balls"), (3, "three red circles")):
        rows = reading_task(Scene("count", (RED,) * number), text, SMALL)
        assert rows == [[0, 0, -100, 0, number - 1]] * len(text.split())


def test_a_single_object_is_told_by_every_word() -> None:
    assert reading_task(Scene("single", (BLUE,)), "a blue cross", SMALL) == [[2, 3, -100, 0, 0]] * 3


def test_everything_is_built(tmp_path: Path) -> None:
    section = TextEncoderSection(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        max_length=24,
        steps=2,
        batch_size=4,
        learning_rate=1e-3,
    )
    unet = {"block_out_channels": [32, 64], "cross_attention_dim": 32, "layers_per_block": 1, "attention_head_dim": 2}
    recipe = StartRecipe(
        output=str(tmp_path),
        vocabulary="small",
        latent_scale=2.5,
        shift=3.0,
        seed=1,
        unet=unet,
        text_encoder=section,
    )
    folder = build(recipe)
    assert folder == tmp_path / "vision"
    vision = load_vision_model(folder, "unet")
    assert vision.scale == 2.5 and vision.context_width == 32 and vision.latent_channels == 4
    assert json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["shift"] == 3.0
    encoder, prompt = TextEncoder.load(folder / "text_encoder"), PromptRecipe(max_length=24)
    with torch.no_grad():
        states = encoder(encoder.tokenize(["a red circle"], prompt), prompt).states
    assert states.shape == (1, 24, 32) and states.isfinite().all()


def test_a_transformer_without_an_encoder_is_built(tmp_path: Path) -> None:
    sizes = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "cross_attention_dim": 32,
        "num_layers": 1,
        "patch_size": 2,
        "caption_channels": 24,
    }
    recipe = StartRecipe(
        output=str(tmp_path), vocabulary="small", latent_scale=2.0, shift=3.0, seed=1, transformer=sizes
    )
    folder = build(recipe)
    vision = load_vision_model(folder, "pixart")
    assert vision.context_width == 24 and vision.scale == 2.0 and vision.objective.shift == 3.0
    assert not (folder / "text_encoder").exists()


def test_a_start_has_one_network() -> None:
    with pytest.raises(ValueError, match="one network"):
        StartRecipe(output="", vocabulary="small", latent_scale=2.0, shift=3.0, seed=1)
