"""Each kind of adapter that mixes tokens, and each form of hidden states, through a whole run: trained, resumed to the
bit, validated, saved, read back, drawn with."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lavi_bridge.lavi_core.checkpoint import BridgeCheckpoint
from lavi_bridge.lavi_core.files import read_safetensors
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.tests.training import dits
from lavi_bridge.training.commands import main
from lavi_bridge.training.dry_run import dry_run
from lavi_bridge.training.loop.trainer import Trainer
from lavi_bridge.training.models.pair import Pair
from lavi_bridge.training.models.pipeline import Pipeline
from lavi_bridge.training.models.vision_model import load_vision_model
from lavi_bridge.training.recipe import read_recipe
from PIL import Image

pytestmark = pytest.mark.usefixtures("on_cpu")

OPTIONS = ["adapter.depth=1", "adapter.heads=2"]
T5 = Path(__file__).parents[2] / "golden" / "t5_unet" / "tokenizer"
ASKS = ["adapter.kind=token_queries", f"adapter.query_tokenizer={T5}", *OPTIONS]
SEEDED = ["adapter.kind=seeded_resampler", f"adapter.query_tokenizer={T5}", "adapter.tokens=9", *OPTIONS]
RUNS = {
    "seeded_resampler": [*SEEDED, "accumulation=2", "adapter.dropout=0.5"],
    "resampler": ["adapter.kind=resampler", "adapter.tokens=5", *OPTIONS],
    "timestep_resampler": [
        *("adapter.kind=timestep_resampler", "adapter.tokens=5", *OPTIONS),
        *("validation.every=2", "data.validation=4", "validation.bins=2", "sample.every=2", "sample.steps=2"),
        *('sample.prompts=["a red circle"]', "ema=0.9", "accumulation=2"),
    ],
    "refiner": ["adapter.kind=refiner", "adapter.dropout=0.5", *OPTIONS],
    "perceiver": ["adapter.kind=perceiver", "adapter.tokens=5", *OPTIONS],
    "projection": ["adapter.kind=projection"],
    "token_queries": [*ASKS, "accumulation=2"],
    "token_queries, frozen language model": [
        *(*ASKS, "language.train=frozen", "prompt.padding=longest", "prompt.vision_mask=true"),
        *("validation.every=2", "data.validation=4", "validation.bins=2", "sample.every=2", "sample.steps=2"),
        *('sample.prompts=["a red circle"]', "validation.text=true"),
    ],
    "compressor, frozen language model, padding on the left": [
        *("adapter.kind=compressor", "adapter.tokens=5", *OPTIONS),
        *("language.train=frozen", "prompt.padding_side=left", "prompt.vision_mask=true"),
    ],
    "two layers": ["prompt.hidden_states=[1, -1]"],
    "before the norm": ["prompt.hidden_states=last_before_norm"],
    "learned mean": ["prompt.hidden_states=learned_mean", "adapter.freeze_layer_weights=3"],
    "learned mean, frozen language model, timestep_resampler": [
        *("prompt.hidden_states=learned_mean", "language.train=frozen", "adapter.kind=timestep_resampler"),
        *("adapter.tokens=5", *OPTIONS, "validation.every=2", "data.validation=4"),
    ],
}


def tensors(path: Path) -> bytes:
    data = path.read_bytes()
    return data[8 + int.from_bytes(data[:8], "little") :]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("changes", "share"),
    [([], 0.1), (["adapter.dropout=0.3"], 0.3), (["adapter.kind=refiner"], 0.0), (["adapter.kind=projection"], 0.1)],
)
def test_dropout_that_no_recipe_names_is_the_kinds_own(
    changes: list[str], share: float, recipe: Path, tiny: Path
) -> None:
    parts = TextEncoder.load(tiny / "text_encoder"), load_vision_model(tiny / "vision")
    pair = Pair(read_recipe(recipe, changes), *parts)
    assert {layer.p for layer in pair.adapter.modules() if isinstance(layer, torch.nn.Dropout)} == {share}


@pytest.mark.parametrize("name", RUNS)
def test_trains_resumes_to_the_bit_and_draws(name: str, recipe: Path, tiny: Path, tmp_path: Path) -> None:
    changes = [*RUNS[name], "save_every=2", "keep=9"]
    whole = Trainer(read_recipe(recipe, [*changes, "steps=4", f"output={json.dumps(str(tmp_path / 'whole'))}"])).run()
    Trainer(read_recipe(recipe, [*changes, "steps=2"])).run()
    trainer = Trainer(read_recipe(recipe, [*changes, "steps=4"]), resume=True)
    bridge = trainer.run()
    assert tensors(bridge) == tensors(whole)
    assert [line["loss"] for line in lines(bridge.parent) if "loss" in line] == [
        line["loss"] for line in lines(whole.parent) if "loss" in line
    ]
    first, last = (
        read_safetensors(bridge.parent / "state" / f"step-000000{step}" / "weights.safetensors") for step in (0, 4)
    )
    still = [key for key in first if key.startswith(("adapter.", "layers.")) and torch.equal(first[key], last[key])]
    assert not still, f"not trained: {still}"

    checkpoint, adapter = BridgeCheckpoint.load(bridge), trainer.pair.adapter
    assert checkpoint.config.adapter == trainer.pair.adapter_config == adapter.config
    pipeline = Pipeline.load(bridge, tiny / "text_encoder", tiny / "vision", tiny / "vae.safetensors", device="cpu")
    prompts = ["a red circle", "two green squares left of a blue triangle"]
    x, t = torch.randn(2, 4, 4, 4, generator=torch.manual_seed(3)), torch.tensor([900.0, 300.0])
    assert pipeline.bridge is not None
    with torch.no_grad(), trainer.as_given() as pair:
        expected = pair(trainer.text_inputs(prompts), x, t)
        found = pipeline.vision.predict(x, t, pipeline.bridge.adapt(pipeline.bridge.hear(prompts), t))
        if adapter.hears_timestep:
            with pytest.raises(ValueError, match="gives another context at each timestep and was told none"):
                pipeline.bridge(prompts)
        else:
            assert torch.equal(found, pipeline.vision.predict(x, t, pipeline.bridge(prompts)))
    assert (found - expected).abs().max() < 5e-3 * expected.abs().max()  # the file is half precision

    parts = ("--language-model", tiny / "text_encoder", "--vision-model", tiny / "vision")
    options = ("--vae", tiny / "vae.safetensors", "--size", "32", "--steps", "2", "-o", tmp_path / "a.png")
    assert main(["sample", str(bridge), *prompts, *map(str, (*parts, *options))]) == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_does_not_go_on_with_another_second_tokenizer(recipe: Path, tmp_path: Path) -> None:
    """Of as many ids: another word is one of them."""
    text, file = (T5 / "tokenizer.json").read_text(), tmp_path / "tokenizer.json"
    file.write_text(text)
    changes = ["adapter.kind=token_queries", f"adapter.query_tokenizer={json.dumps(str(file))}", *OPTIONS]
    Trainer(read_recipe(recipe, [*changes, "steps=1"])).run()
    words = json.loads(text)
    words["model"]["vocab"][13], words["model"]["vocab"][14] = (words["model"]["vocab"][i] for i in (14, 13))
    file.write_text(json.dumps(words))
    with pytest.raises(ValueError, match=r"does not fit this recipe: query_tokenizer\.fingerprint is"):
        Trainer(read_recipe(recipe, [*changes, "steps=2"]), resume=True)


def test_the_context_of_an_adapter_in_time_is_measured_over_its_own_tokens(recipe: Path, tmp_path: Path) -> None:
    changes = ["validation.every=1", "data.validation=4", "steps=1"]
    Trainer(read_recipe(recipe, [*RUNS["timestep_resampler"], *changes])).run()
    (found,) = (line["context"]["bridge"] for line in lines(tmp_path / "run") if "context" in line)
    assert found["size"] == pytest.approx(1, rel=0.01)  # of what a LayerNorm gives at its start
    assert found["spread"] > 0 and found["empty_size"] == pytest.approx(1, rel=0.01)


def test_weights_of_layers_are_learnt_and_then_stay_to_the_bit(recipe: Path, tmp_path: Path) -> None:
    changes = ["prompt.hidden_states=learned_mean", "adapter.freeze_layer_weights=3", "save_every=1", "keep=9"]
    trainer = Trainer(read_recipe(recipe, [*changes, "optimizer.weight_decay=0.5"]))
    trainer.run()
    kept = sorted((tmp_path / "run" / "state").iterdir())
    logits = [read_safetensors(path / "weights.safetensors")["layers.logits"] for path in kept]
    assert len(logits) == 7 and not logits[0].any()
    same = [torch.equal(a, b) for a, b in pairwise(logits)]
    assert same == [False] * 3 + [True] * 3
    told = [line["learning_rate"]["layers"] for line in lines(tmp_path / "run") if "loss" in line]
    norms = [line["group_norm"]["layers"] for line in lines(tmp_path / "run") if "loss" in line]
    assert told == [1e-2] * 3 + [0] * 3 and all(norms[:3]) and not any(norms[3:])
    found = BridgeCheckpoint.load(tmp_path / "run" / "bridge.safetensors").adapter["layer_mean.logits"]
    torch.testing.assert_close(found.float(), logits[-1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["adapter.depth=2"], "adapter.depth is 2, the adapter 'mlp' has none of the kind: leave it out"),
        (["adapter.kind=refiner", "adapter.tokens=4"], "adapter.tokens is 4, the adapter 'refiner' has depth, heads"),
        (
            ["adapter.kind=token_queries"],
            r"asks with the token ids of a second tokenizer: set adapter\.query",
        ),
        ([f"adapter.query_tokenizer={T5}"], "the adapter 'mlp' asks with no second tokenizer: leave it out"),
        (
            [*ASKS, "align.steps=3", "align.teacher=x"],
            "'token_queries' gives those of a second tokenizer: set",
        ),
        (["adapter.freeze_layer_weights=5"], "adapter.freeze_layer_weights is 5, but no weights of layers are learnt"),
        (
            ["prompt.hidden_states=learned_mean", "adapter.freeze_layer_weights=0"],
            "adapter.freeze_layer_weights is a step from 1 on, got 0",
        ),
        (
            [*("prompt.hidden_states=learned_mean", "adapter.freeze_layer_weights=5"), "optimizer.kind=schedule_free"],
            "'schedule_free' goes on averaging what it trained, so it cannot freeze",
        ),
    ],
)
def test_recipes_that_do_not_fit_are_refused(recipe: Path, change: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_recipe(recipe, change)


def test_captions_of_more_queries_than_the_vision_model_hears_are_cut_and_told_before(
    recipe: Path, tmp_path: Path
) -> None:
    report = dry_run(read_recipe(recipe, ASKS))
    assert not report.problems and "tokens of the second tokenizer" in str(report)
    dits.write("aura_flow", tmp_path / "dit")
    changes = [*ASKS, f"vision.model={json.dumps(str(tmp_path / 'dit'))}", *written(tmp_path / "data", 300)]
    changes += ["vision.target=aura_flow"]
    report = dry_run(read_recipe(recipe, changes))
    assert re.search(r"the longest caption has 3\d\d tokens of the second tokenizer", str(report))
    (found,) = (one for one in report.notes if "second tokenizer" in one)
    assert re.search(r"captions are cut to the 256 tokens of the second tokenizer that the bridge asks with", found)


def test_captions_that_are_cut_for_a_second_tokenizer_are_told(
    recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes = [*SEEDED, *written(tmp_path / "data", 30), "data.validation=0"]
    report = dry_run(read_recipe(recipe, changes))
    assert not report.problems  # of prompt.max_length = 16 tokens the memory is estimated
    (note,) = (one for one in report.notes if "second tokenizer" in one)
    assert re.search(r"\d+ of \d+ captions are cut to the 9 tokens of the second tokenizer that the bridge asks", note)
    Trainer(read_recipe(recipe, [*changes, "steps=2"])).run()
    (told,) = (one.getMessage() for one in caplog.records if "asks with 9 at most" in one.getMessage())
    assert re.search(r"captions are cut: \d+ tokens of the prompt are cut off and not heard, the bridge asks", told)


def written(folder: Path, words: int) -> list[str]:
    """A folder of one picture with a caption of so many words. -> the recipe's changes for it"""
    folder.mkdir()
    Image.new("RGB", (32, 32)).save(folder / "a.png")
    (folder / "a.txt").write_text("a " * words)
    return ["data.kind=folder", f"data.path={json.dumps(str(folder))}", "data.count=0"]


def test_heads_that_do_not_divide_and_layers_that_are_not_there_are_refused(recipe: Path) -> None:
    for change, message in (
        (
            ["adapter.kind=refiner", "adapter.heads=5"],
            r"adapter\.heads = 5 does not divide the adapter's inner width 24",
        ),
        (["prompt.hidden_states=[1, 7]"], "hidden state 7 was asked for; a model of 2 layers has 0 to 2"),
    ):
        with pytest.raises(ValueError, match=message):
            Trainer(read_recipe(recipe, change))
