"""The judge reads true pictures, also soft and noisy ones, and is not pleased by wrong ones."""

from __future__ import annotations

import numpy as np
import pytest
from lavi_bridge.training.shapebench import (
    CATEGORIES,
    VOCABULARIES,
    Object,
    PromptSpec,
    Scene,
    ceiling,
    chance,
    judge,
    prompts,
    render,
    score,
)
from scipy import ndimage

BOTH = list(VOCABULARIES.values())


def _blur(image, rng):
    return ndimage.gaussian_filter(image, (1.5, 1.5, 0))


def _noise(image, rng):
    return image + rng.normal(0, 8, image.shape)


def _brighter(image, rng):
    return image * 1.1


def _dimmer(image, rng):
    return image * 0.9


def _tinted(image, rng):
    return image * rng.uniform(0.9, 1.1, 3)


def _everything(image, rng):
    return _noise(_blur(_tinted(image, rng), rng), rng)


@pytest.mark.parametrize("vocabulary", BOTH, ids=lambda v: v.name)
@pytest.mark.parametrize("category", CATEGORIES)
def test_true_pictures_are_correct(vocabulary, category):
    for split in ("test", "pairs"):
        assert ceiling(category, 80, 3, vocabulary, split)["correct"] >= 0.97


@pytest.mark.parametrize("vocabulary", BOTH, ids=lambda v: v.name)
@pytest.mark.parametrize("category", CATEGORIES)
def test_flawless_pictures_of_other_prompts_are_not(vocabulary, category):
    row = chance(category, 128, 3, vocabulary)
    # One object out of 14 pairs is right one time in 14; two objects hardly ever.
    assert row["correct"] <= (0.14 if category in ("single", "shape", "count") else 0.06)


@pytest.mark.parametrize("damage", [_blur, _noise, _brighter, _dimmer, _tinted, _everything], ids=lambda d: d.__name__)
@pytest.mark.parametrize("category", CATEGORIES)
def test_soft_noisy_and_tinted_pictures_are_still_read(category, damage):
    rng = np.random.default_rng(4)
    scenes = [scene for _, scene in prompts(category, 40, 5, VOCABULARIES["full"])]
    images = []
    for scene in scenes:
        damaged = damage(render(scene).astype(np.float32), rng)
        images.append(np.clip(damaged + 0.5, 0, 255).astype(np.uint8))
    assert score(images, scenes)["correct"] >= 0.95


RED_CIRCLE = Object("red", "circle", "solid", 31, 64, 22)
BLUE_SQUARE = Object("blue", "square", "striped", 97, 64, 22)
PAIR = render(Scene("spatial", (RED_CIRCLE, BLUE_SQUARE), "left of"))


def _asked(first, second, relation=None):
    return judge(PAIR, PromptSpec((first, second), relation))


def test_each_aspect_fails_alone():
    red, blue = ("red", "circle", None), ("blue", "square", None)
    right = _asked(red, blue, "left of")
    assert right.correct and right.texture is None
    assert _asked(blue, red, "right of").correct

    swapped = _asked(("blue", "circle", None), ("red", "square", None))
    assert swapped.color and swapped.shape and not swapped.bind and not swapped.correct
    turned = _asked(red, blue, "above")
    assert turned.bind and turned.relation is False and not turned.correct
    assert _asked(red, blue, "right of").relation is False
    recolored = _asked(("green", "circle", None), blue)
    assert not recolored.color and recolored.shape and not recolored.correct
    reshaped = _asked(("red", "triangle", None), blue)
    assert reshaped.color and not reshaped.shape
    textured = _asked(("red", "circle", "dotted"), ("blue", "square", "striped"))
    assert textured.texture is False and textured.color and not textured.bind
    assert _asked(("red", "circle", "solid"), ("blue", "square", "striped")).correct

    alone = judge(PAIR, PromptSpec((red,)))
    assert alone.bind and not alone.count and not alone.correct
    # Two of a kind are asked for, one is there.
    assert not _asked(red, red).shape


def test_a_texture_that_the_prompt_does_not_name_is_not_judged():
    for texture in ("solid", "striped", "dotted"):
        image = render(Scene("texture", (Object("green", "ring", texture, 64, 64, 22),)))
        verdict = judge(image, PromptSpec((("green", "ring", None),)))
        assert verdict.correct and verdict.found[0].texture == texture


def test_centroids_are_in_canvas_pixels_at_every_size():
    scene = Scene("single", (Object("white", "star", "solid", 50, 80, 22),))
    for size in (96, 128, 256):
        (thing,) = judge(render(scene, size), scene).found
        assert (thing.color, thing.shape) == ("white", "star")
        assert abs(thing.x - 50) < 1 and abs(thing.y - 80) < 1


@pytest.mark.parametrize("category", CATEGORIES)
def test_no_picture_at_all_scores_nothing(category):
    rng = np.random.default_rng(0)
    scenes = [scene for _, scene in prompts(category, 8, 1, VOCABULARIES["small"])]
    for make in (
        lambda: np.zeros((128, 128, 3), np.uint8),
        lambda: rng.integers(0, 256, (128, 128, 3), np.uint8),
        lambda: np.full((128, 128, 3), 255, np.uint8),
        lambda: (
            (ndimage.gaussian_filter(rng.normal(0, 1, (128, 128, 3)), (9, 9, 0)) * 2000).clip(0, 255).astype(np.uint8)
        ),
    ):
        assert score([make() for _ in scenes], scenes)["correct"] == 0


def test_the_row_of_a_table():
    scenes = [scene for _, scene in prompts("single", 10, 0, VOCABULARIES["small"])]
    images = [render(scene) for scene in scenes]
    images[:5] = [np.zeros_like(images[0])] * 5
    row = score(images, scenes)
    assert row["correct"] == 0.5 and row["n"] == 10 and row["texture"] is None and row["relation"] is None
    low, high = row["interval"]
    assert 0.1 <= low < 0.4 and 0.6 < high <= 0.9  # binomial of 10 at a half
    assert row == score(images, scenes)
    with pytest.raises(ValueError, match="9 images for 10 scenes"):
        score(images[:9], scenes)
    with pytest.raises(ValueError, match="float32"):
        judge(images[0].astype(np.float32), scenes[0])
