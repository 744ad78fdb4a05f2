"""A frozen language model is in memory while its states are computed, and never where they all are kept."""

from __future__ import annotations

import json
import logging
import shutil
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from lavi_bridge.lavi_core.checkpoint import BridgeCheckpoint
from lavi_bridge.lavi_core.files import read_safetensors, write_safetensors
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.lavi_core.language.loading import Source
from lavi_bridge.lavi_core.prompt import PromptRecipe
from lavi_bridge.training.data.ranks import Ranks
from lavi_bridge.training.data.text_states import TextStateCache
from lavi_bridge.training.loop.step import TrainStep
from lavi_bridge.training.loop.trainer import Trainer
from lavi_bridge.training.models.frozen_language import FrozenLanguage
from lavi_bridge.training.recipe import read_recipe

pytestmark = pytest.mark.usefixtures("on_cpu")

WATCHED = ["data.validation=4", "validation.every=2", "validation.bins=2", "sample.every=3", "sample.bench=1"]
WATCHED += ['sample.prompts=["a ruby disc", "a red circle"]', "sample.steps=2", "data.mix.single=1", "data.mix.color=1"]


class Loads:
    """Language models that were loaded, and how many of them were alive at each step and each forward pass."""

    def __init__(self, patch: pytest.MonkeyPatch):
        load, forward, step = TextEncoder.load.__func__, TextEncoder.forward, TrainStep.__call__  # type: ignore[attr-defined]
        self.models: list[weakref.ref] = []
        self.paths: list[str] = []
        self.alive: list[int] = []
        self.passes = 0

        def watched_load(cls: type, path: str | Path, **settings: object) -> TextEncoder:
            found = load(cls, path, **settings)
            self.models.append(weakref.ref(next(found.model.parameters())))
            self.paths.append(Path(path).name)
            return found

        def watched_forward(*arguments: object) -> object:
            self.passes += 1
            return forward(*arguments)  # type: ignore[arg-type]

        def watched_step(*arguments: object) -> object:
            self.alive.append(sum(model() is not None for model in self.models))
            return step(*arguments)  # type: ignore[arg-type]

        patch.setattr(TextEncoder, "load", classmethod(watched_load))
        patch.setattr(TextEncoder, "forward", watched_forward)
        patch.setattr(TrainStep, "__call__", watched_step)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Loads:
    return Loads(monkeypatch)


def run(recipe: Path, output: Path, *changes: str, resume: bool = False) -> Trainer:
    cache = f"data.cache={json.dumps(str(output.parent / 'cache'))}"
    changes = ("language.train=frozen", cache, f"output={json.dumps(str(output))}", *changes)
    trainer = Trainer(read_recipe(recipe, changes), resume=resume)
    trainer.run()
    return trainer


def measured(output: Path) -> list[dict]:
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    timed = ("waited", "images_per_second", "cpu_seconds")
    return [{key: value for key, value in line.items() if key not in timed} for line in lines]


@pytest.mark.parametrize("changes", [[], ["prompt.vision_mask=true", "precision=bf16"]], ids=["heard", "masked"])
def test_it_is_freed_before_the_first_step_and_a_second_run_never_loads_it(
    changes: list[str], recipe: Path, tmp_path: Path, loads: Loads
) -> None:
    """The second run measures the same, to the bit: losses, norms, validation, scores, pictures, weights."""
    first = run(recipe, tmp_path / "first", *WATCHED, *changes)
    assert len(loads.models) == 1 and loads.alive == [0] * 6 and loads.passes > 0
    passes = loads.passes
    again = run(recipe, tmp_path / "again", *WATCHED, *changes)
    assert len(loads.models) == 1 and loads.passes == passes
    assert measured(tmp_path / "again") == measured(tmp_path / "first")
    assert all(torch.equal(p, again.trained[key]) for key, p in first.trained.items())
    drawn = [sorted((tmp_path / name / "samples").iterdir()) for name in ("first", "again")]
    assert len(drawn[0]) == 4 and [a.read_bytes() for a in drawn[0]] == [b.read_bytes() for b in drawn[1]]


def test_what_all_is_kept_is_what_the_run_asks_for(recipe: Path, tmp_path: Path, loads: Loads) -> None:
    """Nothing is computed ahead that no step, validation or picture asks for, beside the dropped captions."""
    trainer = run(recipe, tmp_path / "run", "caption_dropout=0.0", "steps=3")
    cache = trainer.text_inputs.cache
    order = trainer.latents.order(4, 0, trainer.trained_on)
    wanted = {""} | {
        trainer.latents.caption(i, e) for step in range(3) for i, e in zip(*order.batch(step), strict=True)
    }
    assert cache is not None and len(cache) == len(wanted)


def test_a_run_goes_on_to_the_bit_and_further(recipe: Path, tmp_path: Path, loads: Loads) -> None:
    """Of captions that change from round to round the further steps have new ones: it is loaded for them, and freed."""
    whole = run(recipe, tmp_path / "a" / "whole", *WATCHED)
    run(recipe, tmp_path / "b" / "run", *WATCHED, "steps=3")
    resumed = run(recipe, tmp_path / "b" / "run", *WATCHED, resume=True)
    assert len(loads.models) == 3 and loads.alive == [0] * 12
    expected, found = (measured(tmp_path / name) for name in ("a/whole", "b/run"))
    assert [e["loss"] for e in found if "loss" in e] == [e["loss"] for e in expected if "loss" in e]
    assert all(torch.equal(p, resumed.trained[key]) for key, p in whole.trained.items())


def test_what_other_processes_computed_is_taken_in_before_the_first_step(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The other one writes what this one lacks before either goes on."""
    caplog.set_level(logging.INFO)
    trainer = Trainer(read_recipe(recipe, ["language.train=frozen", "steps=1"]))
    counts: list[int] = []

    @contextmanager
    def together(self: Ranks) -> Iterator[None]:
        yield
        cache = trainer.text_inputs.cache
        if cache is not None and len(cache):  # latents are computed together, too
            counts.append(len(cache))
            facts = json.loads((cache.folder / "facts.json").read_text())
            kept = {key: value for key, value in facts.items() if key not in ("prompt", "format")}
            other = TextStateCache(cache.folder.parent, kept, cache.prompt, cache.compute, key_of=cache.key_of)
            assert other.folder == cache.folder
            other.fill(["three blue squares above a red triangle"])
            other.flush()

    monkeypatch.setattr(Ranks, "together", together)
    trainer.run()
    said = [r.getMessage() for r in caplog.records if "text states lie in" in r.getMessage()]
    assert len(said) == 1 and said[0].startswith(f"all {counts[-1] + 1} text states lie in ")


def test_a_changed_model_is_told_by_its_files(recipe: Path, tiny: Path, tmp_path: Path) -> None:
    """Its norms are scaled, which its fingerprint of signs does not see; the run is not gone on with."""
    model = tmp_path / "model"
    shutil.copytree(tiny / "text_encoder", model)
    changes = [f"language.model={json.dumps(str(model))}"]
    run(recipe, tmp_path / "run", *changes, "steps=2")
    weights = read_safetensors(model / "model.safetensors")
    scaled = {key: t * 1.3 if "LayerNorm.weight" in key else t for key, t in weights.items()}
    write_safetensors(model / "model.safetensors", scaled, {"format": "pt"})
    with pytest.raises(ValueError, match=r"language\.facts\.weights"):
        run(recipe, tmp_path / "run", *changes, resume=True)


def test_the_bridge_names_the_model_as_it_is_when_it_is_loaded(recipe: Path, tiny: Path, tmp_path: Path) -> None:
    trainer = run(recipe, tmp_path / "run", "steps=1", "precision=bf16")
    loaded = TextEncoder.load(tiny / "text_encoder").config
    assert BridgeCheckpoint.load(tmp_path / "run" / "bridge.safetensors").config.language == loaded
    assert not list(trainer.pair.encoder.parameters()) and "Linear" in repr(trainer.pair.encoder)


def test_alignment_takes_what_is_kept(recipe: Path, tiny: Path, tmp_path: Path, loads: Loads) -> None:
    """Where the states are kept already, the model is not loaded for it either."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    teacher = tmp_path / "teacher"
    BertModel(BertConfig.from_pretrained(tiny / "text_encoder", hidden_size=24)).save_pretrained(teacher)
    AutoTokenizer.from_pretrained(tiny / "text_encoder").save_pretrained(teacher)
    run(recipe, tmp_path / "kept")
    changes = ["align.steps=3", "align.batch_size=4", f"align.teacher={json.dumps(str(teacher))}"]
    run(recipe, tmp_path / "run", *changes)
    assert loads.paths == ["text_encoder", "teacher"] and loads.alive == [0] * 12
    assert measured(tmp_path / "run") != measured(tmp_path / "kept")


def test_where_there_is_no_room_for_its_states_it_stays(recipe: Path, tmp_path: Path, loads: Loads) -> None:
    quiet = ["adapter.kind=linear", "vision.dropout=0.0"]
    run(recipe, tmp_path / "a" / "kept", *quiet)
    run(recipe, tmp_path / "b" / "full", *quiet, "language.states_gb=6e-6")  # three captions of 2048 bytes, fp32
    assert len(loads.models) == 2  # once in each
    run(recipe, tmp_path / "c" / "asked", *quiet, "language.states_gb=0.0")
    assert loads.alive[:12] == [0] * 6 + [1] * 6
    losses = [[e["loss"] for e in measured(tmp_path / name) if "loss" in e] for name in ("a/kept", "b/full", "c/asked")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and losses[2] == pytest.approx(losses[0], rel=1e-5)


def test_a_model_whose_files_have_other_names_is_known_by_its_weights(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Source, "print", lambda self: (None, None))
    language = FrozenLanguage(tiny / "text_encoder", torch.float32, PromptRecipe(max_length=16))
    expected = TextEncoder.load(tiny / "text_encoder").config
    assert language.encoder.config == expected and expected.fingerprint is not None
