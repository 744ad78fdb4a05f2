"""Whether the picture hears the text: losses by caption, contexts, gradients by group; each computed here once more."""

from __future__ import annotations

import json
import logging
import random
import shutil
import weakref
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from lavi_bridge.lavi_core.adapters import Adapter
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.training.loop.context_measures import Contexts
from lavi_bridge.training.loop.step import TrainStep
from lavi_bridge.training.loop.trainer import Trainer
from lavi_bridge.training.loop.validation import in_words, shuffled
from lavi_bridge.training.recipe import read_recipe

pytestmark = pytest.mark.usefixtures("on_cpu")

VALIDATED = ["data.validation=6", "validation.every=3", "validation.bins=2", "validation.batch_size=4"]


def run(recipe: Path, output: Path, *changes: str, resume: bool = False) -> Trainer:
    trainer = Trainer(read_recipe(recipe, [*changes, f"output={json.dumps(str(output))}"]), resume=resume)
    trainer.run()
    return trainer


def entries(folder: Path, key: str) -> list:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def by_hand(contexts: list[np.ndarray], empty: np.ndarray) -> dict[str, float]:
    """contexts: of each caption its real tokens, [t C]. empty: those of ""."""
    numbers = np.concatenate([tokens.reshape(-1) for tokens in contexts])
    size = np.sqrt(np.mean(numbers**2))
    means = np.array([tokens.mean(0) for tokens in contexts])
    middle = means.mean(0)
    return {
        "size": size,
        "spread": np.sqrt(np.mean([np.mean((mean - middle) ** 2) for mean in means])) / size,
        "empty_size": np.sqrt(np.mean(empty**2)),
        "empty_distance": np.sqrt(np.mean((empty.mean(0) - middle) ** 2)) / size,
    }


def test_contexts_are_measured_by_real_tokens_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    context, lengths = torch.randn(5, 7, 3, generator=generator), [7, 1, 3, 2, 5]
    mask = torch.arange(7).expand(5, 7) < torch.tensor(lengths).unsqueeze(1)
    context[~mask] = float("inf")
    gathered, empty = Contexts(), Contexts()
    gathered.add(context[:2], mask[:2])
    gathered.add(context[2:, :5].bfloat16(), mask[2:, :5])
    empty.add(context[3:4], mask[3:4])
    rows = [*context[:2], *context[2:].bfloat16().float()]
    real = [row[:length].double().numpy() for row, length in zip(rows, lengths, strict=True)]
    expected = by_hand(real, context[3, :2].double().numpy())
    assert gathered.measure(empty).plain() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("count", [2, 5, 8, 60])
def test_a_shuffled_caption_is_never_its_own(count: int) -> None:
    for seed in range(20):
        rng = random.Random(seed)
        captions = [f"caption {min(rng.randrange(count), rng.randrange(count))}" for _ in range(count)]
        found, most = shuffled(captions, seed), max(Counter(captions).values())
        if 2 * most > count:
            assert found == []
            continue
        assert Counter(found) == Counter(captions) and found == shuffled(captions, seed)
        assert not any(a == b for a, b in zip(found, captions, strict=True))
    captions = [str(number) for number in range(60)]
    assert shuffled(captions, 1) != shuffled(captions, 2)


@pytest.mark.parametrize("language", ["lora", "frozen"])
def test_losses_and_contexts_are_those_of_the_pair_at_that_step(recipe: Path, tmp_path: Path, language: str) -> None:
    """Example by example, each alone; every loss with the same noise."""
    trainer = run(recipe, tmp_path / "run", *VALIDATED, f"language.train={language}", "steps=3")
    held, pair, latents, seed = trainer.held_out.tolist(), trainer.pair.eval(), trainer.latents, trainer.recipe.seed
    encoder, prompt, vision = trainer.text_inputs.encoder(), trainer.recipe.prompt, pair.vision_model
    captions = [latents.caption(index, 0) for index in held]
    kinds = {"right": captions, "shuffled": shuffled(captions, seed), "empty": [""] * 6}
    assert len(kinds["shuffled"]) == 6 and captions != kinds["shuffled"]
    expected, contexts = {}, {}
    with torch.no_grad():
        for kind, texts in kinds.items():
            errors = []
            for index, text in zip(held, texts, strict=True):
                hidden = encoder(encoder.tokenize([text], prompt), prompt)
                heard = pair.condition(hidden)
                contexts.setdefault(kind, []).append(heard.context[0][hidden.mask[0]].double().numpy())
                for part in range(2):
                    generator = torch.Generator().manual_seed((seed * 1_000_003 + index) * 4096 + part)
                    noise = torch.randn((1, 4, 4, 4), generator=generator)
                    t = vision.objective.timesteps(torch.tensor([(part + 0.5) / 2]))
                    x, target = vision.objective.corrupt(latents.batch([index], [0])[0] * vision.scale, noise, t)
                    errors.append(float((vision.predict(x, t, heard) - target).square().mean()))
            expected[kind] = np.mean(errors)
    (found,) = entries(tmp_path / "run", "caption_loss")
    assert found == pytest.approx(expected, rel=1e-5) and len({round(value, 7) for value in found.values()}) == 3
    assert entries(tmp_path / "run", "validation")[0]["loss"] == found["right"]
    (measures,) = entries(tmp_path / "run", "context")
    assert measures == {"bridge": pytest.approx(by_hand(contexts["right"], contexts["empty"][0]), rel=1e-4)}


def test_a_bridge_that_says_nothing_is_seen(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    forward = Adapter.forward
    monkeypatch.setattr(
        Adapter, "forward", lambda self, hidden, *_: forward(self, hidden._replace(states=hidden.states * 0))
    )
    run(recipe, tmp_path / "run", *VALIDATED, "steps=3")
    (losses,) = entries(tmp_path / "run", "caption_loss")
    assert losses["right"] == losses["shuffled"] == losses["empty"]
    (measures,) = entries(tmp_path / "run", "context")
    assert measures["bridge"]["size"] > 0 and measures["bridge"]["spread"] == pytest.approx(0, abs=1e-6)
    said = [r.getMessage() for r in caplog.records if r.getMessage().startswith("step 3: validation loss")]
    assert len(said) == 1 and "+0.0000 shuffled, +0.0000 empty; context: size" in said[0]


def test_a_vision_model_that_was_trained_with_its_encoder_hears_the_text(recipe: Path, tmp_path: Path) -> None:
    """The demo's own, with nothing between and nothing trained."""
    changes = ["language.model=demo:own", "vision.model=demo:vision", "vision.vae=demo:vae", "adapter.kind=identity"]
    changes += ["language.train=frozen", "vision.learning_rate=0.0", "steps=1", "prompt.max_length=24"]
    changes += ["data.resolution=128", "data.count=16", "batch_size=1", "sample.every=0"]
    run(recipe, tmp_path / "run", *VALIDATED, *changes, "data.validation=12")
    (losses,), (measures,) = (entries(tmp_path / "run", key) for key in ("caption_loss", "context"))
    assert losses["shuffled"] > 1.1 * losses["right"] and losses["empty"] > 1.02 * losses["right"]
    assert measures["own"]["size"] == pytest.approx(measures["bridge"]["size"], rel=0.05)
    assert measures["own"]["empty_size"] == pytest.approx(measures["bridge"]["empty_size"], rel=1e-5)


@pytest.fixture
def whole_pipeline(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny vision model with a text encoder of its width beside it, and its tokenizer in a folder."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = tmp_path / "pipeline"
    shutil.copytree(tiny / "vision", folder)
    torch.manual_seed(5)
    config = BertConfig.from_pretrained(tiny / "text_encoder", hidden_size=24)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder / "text_encoder")
    AutoTokenizer.from_pretrained(tiny / "text_encoder").save_pretrained(folder / "tokenizer")
    return folder


def test_the_own_encoders_context_stands_beside(
    recipe: Path, whole_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As transformers computes it; the encoder is loaded once and gone before the first step."""
    from transformers import AutoModel, AutoTokenizer

    load, step = TextEncoder.load.__func__, TrainStep.__call__  # type: ignore[attr-defined]
    own: list[weakref.ref] = []
    alive: list[bool] = []

    def watched_load(cls: type, path: str | Path, **settings: object) -> TextEncoder:
        found = load(cls, path, **settings)
        if Path(path).parent == whole_pipeline:
            own.append(weakref.ref(next(found.parameters())))
        return found

    def watched_step(*arguments: object) -> object:
        alive.append(own[0]() is not None)
        return step(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(TextEncoder, "load", classmethod(watched_load))
    monkeypatch.setattr(TrainStep, "__call__", watched_step)
    trainer = run(recipe, tmp_path / "run", *VALIDATED, f"vision.model={json.dumps(str(whole_pipeline))}")
    assert len(own) == 1 and alive == [False] * 6
    tokenizer, model = AutoTokenizer.from_pretrained(whole_pipeline / "tokenizer"), None
    model = AutoModel.from_pretrained(whole_pipeline / "text_encoder", add_pooling_layer=False).eval()
    captions = [trainer.latents.plain_caption(index, 0) for index in trainer.held_out.tolist()]
    with torch.no_grad():
        said = [model(**tokenizer([text], return_tensors="pt")).last_hidden_state[0] for text in [*captions, ""]]
    numbers = [tokens.double().numpy() for tokens in said]
    measures = entries(tmp_path / "run", "context")
    assert len(measures) == 2 and measures[0]["own"] == measures[1]["own"]
    assert measures[0]["own"] == pytest.approx(by_hand(numbers[:-1], numbers[-1]), rel=1e-4)
    assert measures[0]["bridge"] != measures[1]["bridge"]


def test_a_context_far_from_the_own_encoders_is_judged_in_the_log() -> None:
    def said(bridge: tuple[float, float], own: tuple[float, float] | None) -> str:
        names = ("size", "spread", "empty_size", "empty_distance")
        context = {"bridge": dict(zip(names, (*bridge, 0.5, 0.5), strict=True))}
        if own is not None:
            context["own"] = dict(zip(names, (*own, 0.5, 0.5), strict=True))
        losses = {"right": 0.4, "shuffled": 0.5, "empty": 0.45}
        return in_words({"validation": {"loss": 0.4}, "caption_loss": losses, "context": context})

    fine = said((0.5, 0.2), (1.0, 0.4))
    assert "+0.1000 shuffled" in fine and "hardly" not in fine and "alike" not in fine
    assert "the context has 0.05 times the size of the own encoder's" in said((0.05, 0.2), (1.0, 0.4))
    large = said((12.0, 0.03), (1.0, 0.4))
    assert "12 times the size" in large and large.endswith("all captions sound nearly alike")
    assert "hardly" not in said((0.05, 0.01), None)  # nothing to judge by


@pytest.mark.parametrize("kind", ["none", "wider", "broken"])
def test_an_own_encoder_that_cannot_stand_beside_is_left_out_and_said_once(
    kind: str, recipe: Path, tiny: Path, whole_pipeline: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    shutil.rmtree(whole_pipeline / "text_encoder")
    if kind != "none":
        shutil.copytree(tiny / "text_encoder", whole_pipeline / "text_encoder")
    if kind == "broken":
        (whole_pipeline / "text_encoder" / "config.json").write_text("{")
    run(recipe, tmp_path / "run", *VALIDATED, f"vision.model={json.dumps(str(whole_pipeline))}")
    assert [set(measures) for measures in entries(tmp_path / "run", "context")] == [{"bridge"}] * 2
    said = [r.getMessage() for r in caplog.records if "the context is measured without" in r.getMessage()]
    why = {"none": "there is no", "wider": "gives width 32, the vision model takes 24", "broken": "config.json"}
    assert len(said) == 1 and why[kind] in said[0]


def test_what_is_measured_changes_nothing_that_is_trained(recipe: Path, tmp_path: Path) -> None:
    blind = [*VALIDATED, "validation.text=false"]
    for name, changes in (("all", VALIDATED), ("blind", blind), ("never", [*VALIDATED, "validation.every=0"])):
        run(recipe, tmp_path / name, *changes)
    assert (
        entries(tmp_path / "all", "loss") == entries(tmp_path / "blind", "loss") == entries(tmp_path / "never", "loss")
    )
    assert entries(tmp_path / "all", "validation") == entries(tmp_path / "blind", "validation") != []
    assert not entries(tmp_path / "blind", "context") and not entries(tmp_path / "blind", "caption_loss")


def test_where_most_captions_are_one_text_there_is_no_shuffled_loss(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from lavi_bridge.training.data.latent_cache import LatentCache

    monkeypatch.setattr(LatentCache, "caption", lambda *_: "a red circle")
    run(recipe, tmp_path / "run", *VALIDATED, "steps=3")
    assert entries(tmp_path / "run", "caption_loss")[0].keys() == {"right", "empty"}
    assert (tmp_path / "run" / "curves.png").is_file()
    assert caplog.text.count("there is no loss with shuffled ones") == 1


@pytest.mark.parametrize("changes", [[], ["accumulation=2", "language.train=frozen"]], ids=["all", "frozen"])
def test_a_groups_norm_is_that_of_its_gradients(
    changes: list[str], recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before they are clipped, and their squares add up to the whole one's."""
    trainer = Trainer(read_recipe(recipe, [*changes, "optimizer.clip_norm=1e-3"]))
    clip, expected = trainer.accelerator.clip_grad_norm_, []

    def watched(parameters: list, limit: float) -> torch.Tensor | None:
        groups: dict[str, float] = defaultdict(float)
        for key, p in trainer.trained.items():
            assert p.grad is not None
            groups[key.partition(".")[0]] += float(p.grad.double().square().sum())
        expected.append({name: value**0.5 for name, value in groups.items()})
        return clip(parameters, limit)

    monkeypatch.setattr(trainer.accelerator, "clip_grad_norm_", watched)
    trainer.run()
    found, whole = (entries(tmp_path / "run", key) for key in ("group_norm", "norm"))
    assert len(found) == len(expected) == 6
    for norms, wanted, norm in zip(found, expected, whole, strict=True):
        assert norms == pytest.approx(wanted, rel=1e-5)
        assert norm == pytest.approx(sum(value**2 for value in norms.values()) ** 0.5, rel=1e-5)
    assert found[0].keys() == ({"adapter", "vision"} if changes else {"adapter", "language", "vision"})
    assert min(found[-1].values()) > 1e-3


def test_tensorboard_has_all_of_it(recipe: Path, whole_pipeline: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(recipe, tmp_path / "run", *VALIDATED, f"vision.model={json.dumps(str(whole_pipeline))}", "steps=3")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    measures = {f"{of}/{name}" for of in ("bridge", "own") for name in by_hand([np.ones((1, 1))], np.ones((1, 1)))}
    expected = {f"caption_loss/{kind}" for kind in ("right", "shuffled", "empty")}
    expected |= {f"context/{name}" for name in measures} | {f"group_norm/{name}" for name in ("adapter", "language")}
    assert expected <= set(events.Tags()["scalars"])
    (logged,) = events.Scalars("caption_loss/shuffled")
    assert logged.value == pytest.approx(entries(tmp_path / "run", "caption_loss")[0]["shuffled"], rel=1e-6)
    run(recipe, tmp_path / "run", *VALIDATED, f"vision.model={json.dumps(str(whole_pipeline))}", "steps=5", resume=True)
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5]  # that of the state, too
