"""Recipes and the command line's answers to bad input."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest
import torch
from lavi_bridge.lavi_core.files import write_safetensors
from lavi_bridge.lavi_core.prompt import PromptRecipe
from lavi_bridge.training.commands import main
from lavi_bridge.training.recipe import AdapterSection, read_recipe

RECIPES = sorted((Path(__file__).parents[3] / "training" / "recipes").rglob("*.toml"))


def test_overrides_reach_nested_keys(recipe: Path) -> None:
    read = read_recipe(recipe, ["vision.rank=8", "data.mix.single=2", "name=other", "prompt.vision_mask=true"])
    assert (read.vision.rank, read.data.mix, read.name, read.prompt.vision_mask) == (8, {"single": 2.0}, "other", True)
    steps = read_recipe(recipe, ["steps=1e3"]).steps
    assert steps == 1000 and isinstance(steps, int)


def test_the_tables_of_keys_that_all_have_defaults_may_be_left_out(recipe: Path) -> None:
    kept, left_out = [], False
    for line in recipe.read_text().splitlines():
        if line.startswith("["):
            left_out = line in ("[prompt]", "[adapter]")
        kept += [] if left_out else [line]
    recipe.write_text("\n".join(kept))
    assert not {"prompt", "adapter"} & tomllib.loads(recipe.read_text()).keys()
    read = read_recipe(recipe)
    assert (read.prompt, read.adapter) == (PromptRecipe(), AdapterSection())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("vision.rnk=8", "unknown key vision.rnk (did you mean vision.rank?); known here: model, vae"),
        ("steps=1.5", "steps = 1.5; it must be of type int"),
        ("vision.rank=big", "vision.rank = 'big'; it must be of type int"),
        ("precision=fp8", "it must be one of 'bf16', 'fp32'"),
        ("batch_size=5", None),
        ("caption_dropout=1.5", "caption_dropout is a share"),
        ("adapter.dropout=1.0", "adapter.dropout is a share"),
        ("steps", "--set takes key=value"),
        ("steps=0", "steps must be at least 1, got 0"),
        ("batch_size=-4", "batch_size must be at least 1"),
        ("accumulation=0", "accumulation must be at least 1"),
        ("save_every=0", "save_every must be at least 1"),
        ("keep=0", "keep must be at least 1"),
        ("vision.rank=0", "vision.rank must be at least 1"),
    ],
)
def test_a_bad_value_is_named(recipe: Path, override: str, message: str | None) -> None:
    if message is None:
        with pytest.raises(ValueError, match="does not divide"):
            read_recipe(recipe, [override, "accumulation=2"])
        return
    with pytest.raises(ValueError) as caught:
        read_recipe(recipe, [override])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nowhere.toml"], "there is no recipe at nowhere.toml"),
        (["train", "{recipe}", "--set", "language.model=nowhere"], "nowhere"),
        (["train", "{recipe}", "--set", "vision.model=nowhere"], "no vision model in nowhere"),
        (
            ["train", "{recipe}", "--set", "vision.model={recipe}"],
            "is a single file, a vision model is read from diffus",
        ),
        (["train", "{recipe}", "--set", "vision.target=sd9"], "known: sd1"),
        (["train", "{recipe}", "--set", "vision.vae=nowhere.safetensors"], "no VAE at nowhere.safetensors"),
        (["train", "{recipe}", "--set", "data.count=0"], "data.count"),
        (["train", "{recipe}", "--resume"], "nothing to resume"),
        (["sample", "nowhere.safetensors", "a red circle", "--language-model", "nowhere"], "nowhere.safetensors"),
    ],
)
def test_bad_input_is_one_sentence_and_a_status(
    recipe: Path, capsys: pytest.CaptureFixture, arguments: list[str], message: str
) -> None:
    status = main([a.format(recipe=recipe) for a in arguments])
    error = capsys.readouterr().err
    assert status == 2 and message in error and "Traceback" not in error
    assert len([line for line in error.splitlines() if line.startswith("lavi-bridge: ")]) == 1


def test_a_cut_or_foreign_vae_is_one_sentence(recipe: Path, tiny: Path, tmp_path: Path, capsys) -> None:
    cut, foreign = tmp_path / "cut.safetensors", tmp_path / "kl.safetensors"
    cut.write_bytes((tiny / "vae.safetensors").read_bytes()[:-100])
    write_safetensors(foreign, {"decoder.conv_in.weight": torch.zeros(2, 2)})
    for path, message in ((cut, "cut short"), (foreign, "is no TAESD file (it holds decoder.conv_in.weight)")):
        assert main(["train", str(recipe), "--set", f"vision.vae={path}"]) == 2
        error = capsys.readouterr().err
        assert message in error and str(path) in error and "Traceback" not in error


def test_a_missing_extra_says_what_to_install(recipe: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert main(["train", str(recipe)]) == 2
    error = capsys.readouterr().err
    assert "diffusers" in error and "install lavi-bridge[train]" in error


@pytest.mark.parametrize("path", [p for p in RECIPES if "steps" in p.read_text() and "[language]" in p.read_text()])
def test_every_shipped_recipe_reads(path: Path) -> None:
    assert read_recipe(path).steps > 0
