"""A prompt is one context wherever it is heard: in the trainer, from its cache, in ``encode`` and in ``sample``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lavi_bridge.lavi_core.conditioning import Conditioning
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.training.data.text_inputs import TextInputs
from lavi_bridge.training.models.bridge_files.encoding import encode_prompts
from lavi_bridge.training.models.frozen_language import FrozenLanguage
from lavi_bridge.training.models.pair import Pair
from lavi_bridge.training.models.pipeline import Pipeline
from lavi_bridge.training.models.vision_model import load_vision_model
from lavi_bridge.training.recipe import read_recipe

pytestmark = pytest.mark.usefixtures("on_cpu")

PROMPTS = ["a red circle", "", "[PAD] [SEP] a blue square", "a small blue square left of two green triangles", "A  RED"]
RECIPES: dict[str, dict[str, Any]] = {
    "neither mask": {"language_mask": False},
    "both masks": {"vision_mask": True},
    "in company": {"vision_mask": True, "padding": "longest"},
    "a template that is cut": {"vision_mask": True, "template": "a big {prompt} , a square", "cut_template": True},
    "padding on the left": {"vision_mask": True, "padding_side": "left"},
    "an inner layer": {"hidden_states": 1},
    "the mean of all layers": {"hidden_states": "normalized_mean"},
    "a learned mean": {"hidden_states": "learned_mean", "vision_mask": True},
    "two layers": {"hidden_states": (1, -1)},
    "no special tokens": {"add_special_tokens": False, "vision_mask": True},
}


def row(conditioning: Conditioning, i: int) -> torch.Tensor:
    """What the vision model attends to. -> [T C]"""
    return conditioning.context[i] if conditioning.mask is None else conditioning.context[i][conditioning.mask[i]]


ATTENTION = [
    *(("resampler", name) for name in ("neither mask", "both masks", "a template that is cut", "padding on the left")),
    *(("resampler", name) for name in ("in company", "a learned mean")),
    *(("refiner", name) for name in ("neither mask", "both masks", "padding on the left")),
]


@pytest.mark.parametrize("train", ["lora", "frozen"])
@pytest.mark.parametrize(("kind", "name"), [*(("mlp", name) for name in RECIPES), *ATTENTION])
def test_one_context(kind: str, name: str, train: str, recipe: Path, tiny: Path, tmp_path: Path) -> None:
    options = ["adapter.tokens=5", "adapter.depth=1"] if kind == "resampler" else []
    read = read_recipe(recipe, [f"adapter.kind={kind}", *options])
    prompt = replace(read.prompt, **RECIPES[name])
    read = replace(read, prompt=prompt, language=replace(read.language, train=train, rank=2, alpha=2.0))
    device, folder = torch.device("cpu"), tiny / "text_encoder"
    frozen = FrozenLanguage(folder, torch.float32, prompt) if train == "frozen" else None
    encoder = TextEncoder.load(folder) if frozen is None else frozen.encoder
    torch.manual_seed(1)
    pair = Pair(read, encoder, load_vision_model(tiny / "vision")).eval()
    with torch.no_grad():
        for parameter in pair.trained().values():
            parameter.normal_(std=0.3)
    pair.checkpoint({}).save(tmp_path / "bridge.safetensors")
    inputs = TextInputs(read, pair, tmp_path / "run", device, frozen)

    vae = tiny / "vae.safetensors"
    drawn = Pipeline.load(tmp_path / "bridge.safetensors", folder, tiny / "vision", vae, device="cpu")
    assert drawn.bridge is not None
    encoded = encode_prompts(drawn.bridge, PROMPTS, batch_size=2)
    with torch.no_grad():
        trained = pair.condition(inputs(PROMPTS))
        again = pair.condition(inputs(PROMPTS))
    lengths = set()
    for i, text in enumerate(PROMPTS):
        alone = row(drawn.condition([text]), 0)
        found = {
            "trainer": row(trained, i),
            "trainer once more": row(again, i),
            "sample": row(drawn.condition(PROMPTS), i),
        }
        found["encode"] = encoded["context"][i][encoded["mask"][i]]
        for where, context in found.items():
            assert context.shape == alone.shape, (where, text)
            torch.testing.assert_close(context, alone, rtol=1e-4, atol=1e-5, msg=f"{where}: {text!r}")
        lengths.add(len(alone))
        assert (
            i == 0
            or alone.shape != row(drawn.condition(PROMPTS[:1]), 0).shape
            or not torch.allclose(alone, row(drawn.condition(PROMPTS[:1]), 0), atol=1e-3)
        )
    assert (len(lengths) > 1) == (prompt.vision_mask and kind != "resampler")


def test_captions_that_are_cut_or_have_words_without_a_token_are_told_once(
    recipe: Path, tiny: Path, tmp_path: Path, caplog
) -> None:
    read = read_recipe(recipe)
    pair = Pair(read, TextEncoder.load(tiny / "text_encoder"), load_vision_model(tiny / "vision"))
    inputs = TextInputs(read, pair, tmp_path / "run", torch.device("cpu"), None)

    def told() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name.startswith("lavi_bridge")]

    inputs(["a red circle"])
    assert not told()
    for _ in range(2):
        inputs(["a red circle", "a blue square left of two green triangles " * 4])
    (cut,) = told()
    assert "captions of more than 16 tokens are cut" in cut and "green triangles" in cut and len(cut) < 300
    for _ in range(2):
        inputs(["a red circle", "a rote circle and a kugel"])
    assert told()[1:] == [
        "the language model has no token for words of captions, and hears one and the same there: 'rote', 'kugel' of "
        "'a rote circle and a kugel'"
    ]
