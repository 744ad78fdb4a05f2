"""A bridge beside the vision model's own encoder, of each kind, through a whole run: trained, resumed to the bit,
saved, read back, drawn with; what the ears are told, how loud they are, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lavi_bridge.lavi_core.checkpoint import BridgeCheckpoint
from lavi_bridge.lavi_core.conditioning import Conditioning
from lavi_bridge.lavi_core.config import SCHEMA
from lavi_bridge.lavi_core.files import read_safetensors
from lavi_bridge.tests.training.paper import write_own_encoders
from lavi_bridge.training.commands import main
from lavi_bridge.training.data.batch import Batches
from lavi_bridge.training.dry_run import dry_run
from lavi_bridge.training.loop.trainer import Trainer
from lavi_bridge.training.models.own_encoder import OwnEncoder
from lavi_bridge.training.models.pipeline import Pipeline, Strengths
from lavi_bridge.training.recipe import Recipe, read_recipe

pytestmark = pytest.mark.usefixtures("on_cpu")

PROMPTS = ["a red circle", "two green squares left of a blue triangle"]
TIMED = ["adapter.kind=timestep_resampler", "adapter.tokens=5", "adapter.depth=1"]
WATCHED = ["validation.every=2", "data.validation=4", "validation.bins=2", "sample.every=2", "sample.steps=2"]
RUNS = {
    "clip": ("clip", [*WATCHED, 'sample.prompts=["a red circle"]']),
    "clip behind a bridge in time": ("clip", [*TIMED, *WATCHED, "own_encoder.place=after", "accumulation=2"]),
    "clip and a frozen language model": ("clip", ["language.train=frozen", "prompt.vision_mask=true"]),
    "t5": ("t5", ["prompt.vision_mask=true"]),
    "t5 and a bridge in time": ("t5", ["prompt.vision_mask=true", *TIMED, *WATCHED]),
    "two clips": ("xl", []),
    "a start and a teacher": (
        "clip",
        ["align.start=ridge", "align.ridge=1.0", "align.batch_size=8", "align.prediction_steps=1"],
    ),
}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_own_encoders(tmp_path_factory.mktemp("own"))


def changes(own: Path, name: str, *more: str) -> list[str]:
    """Of the tiny recipe: a bridge beside own/NAME."""
    found = [f"own_encoder.model={json.dumps(str(own / name))}", "own_encoder.dropout=0.3", *more]
    if any(change.startswith("align.") for change in more):
        found.append(f"align.teacher={json.dumps(str(own / name))}")
    if name == "xl":
        found += [f"vision.model={json.dumps(str(own / 'xl'))}", "vision.target=sdxl"]
        found += [f"vision.vae={json.dumps(str(own / 'xl' / 'vae'))}"]
    return found


def drawn(recipe: Recipe, bridge: Path, own: Path, name: str, **more: Any) -> Pipeline:
    parts = Path(recipe.language.model), Path(recipe.vision.model), Path(recipe.vision.vae)
    return Pipeline.load(bridge, *parts, device="cpu", **({} if name == "xl" else {"own": own / name}), **more)


def heard(condition: Conditioning, row: int) -> torch.Tensor:
    return condition.context[row] if condition.mask is None else condition.context[row][condition.mask[row]]


def tensors(path: Path) -> bytes:
    data = path.read_bytes()
    return data[8 + int.from_bytes(data[:8], "little") :]


@pytest.mark.parametrize("run", RUNS)
def test_trains_resumes_to_the_bit_and_draws(run: str, recipe: Path, own: Path, tmp_path: Path) -> None:
    name, more = RUNS[run]
    common = [*changes(own, name, *more), "save_every=2", "keep=9"]
    whole = Trainer(read_recipe(recipe, [*common, "steps=4", f"output={json.dumps(str(tmp_path / 'whole'))}"])).run()
    Trainer(read_recipe(recipe, [*common, "steps=2"])).run()
    read = read_recipe(recipe, [*common, "steps=4"])
    trainer = Trainer(read, resume=True)
    bridge = trainer.run()
    assert tensors(bridge) == tensors(whole)
    first, last = (
        read_safetensors(bridge.parent / "state" / f"step-000000{step}" / "weights.safetensors") for step in (0, 4)
    )
    assert not [key for key in first if key.startswith("adapter.") and torch.equal(first[key], last[key])]

    config, encoder = BridgeCheckpoint.load(bridge).config, OwnEncoder.load(own / name)
    ear = config.own_encoder
    assert ear is not None and config.schema == SCHEMA
    assert [one.fingerprint for one in ear.encoders] == [one.config.fingerprint for one in encoder.encoders]  # type: ignore[union-attr]
    assert ear.prompt.max_length == (16 if name == "t5" else 20) and ear.prompt.vision_mask == (name == "t5")
    assert (ear.pooled_width, config.adapter.pooled_width) == ((20, None) if name == "xl" else (None, None))

    # What the vision model hears is what the two say, one after the other.
    pipeline, t = drawn(read, bridge, own, name), torch.tensor([900.0, 300.0])
    assert pipeline.bridge is not None
    said = encoder.heard(PROMPTS, read.prompt)
    with torch.no_grad(), trainer.as_given() as pair:
        hidden = pipeline.bridge.hear(PROMPTS)
        alone = pipeline.bridge.alone(hidden, t)
        found, trained = pipeline.bridge.adapt(hidden, t, said), pair.condition(trainer.text_inputs(PROMPTS), t)
    for row in range(2):
        ears = [heard(said, row), heard(alone, row)]
        expected = torch.cat(ears if ear.place == "before" else ears[::-1])
        assert torch.equal(heard(found, row), expected)
        torch.testing.assert_close(heard(trained, row), expected, rtol=1e-2, atol=5e-3)  # the file is half precision
    if name == "xl":
        assert found.pooled is not None and torch.equal(found.pooled, said.pooled)  # type: ignore[arg-type]
        torch.testing.assert_close(trained.pooled, said.pooled)
    made = pipeline.condition(PROMPTS).at(t) if trainer.pair.adapter.hears_timestep else pipeline.condition(PROMPTS)
    torch.testing.assert_close(made.context, found.context)

    folder = () if name == "xl" else ("--own-encoder", own / name)
    parts = ("--language-model", read.language.model, "--vision-model", read.vision.model, "--vae", read.vision.vae)
    options = ("--size", "32", "--steps", "2", "--own-strength", "0.5", "--strength", "1.5", "-o", tmp_path / "a.png")
    words = ("--own-prompt", "a blue circle", "--negative", "a green square")
    assert main(["sample", str(bridge), *PROMPTS, *map(str, (*parts, *folder, *options, *words))]) == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")

    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    command = ["evaluate", "generate", bridge, "--prompts", tmp_path / "prompts.txt", "-o", tmp_path / "evaluated"]
    assert main([*map(str, (*command, *parts, *folder, "--size", "32", "--steps", "2", "--device", "cpu"))]) == 0
    assert len(list((tmp_path / "evaluated" / "samples").glob("*.png"))) == len(PROMPTS)
    time = ("--timestep", "300") if trainer.pair.adapter.hears_timestep else ()
    files = ("--prompts", tmp_path / "prompts.txt", "-o", tmp_path / "encoded.safetensors")
    command = ["encode", str(bridge), "--language-model", read.language.model, *time, "--own-encoder", own / name]
    assert main([*map(str, (*command, *files)), "--device", "cpu"]) == 0
    encoded = read_safetensors(tmp_path / "encoded.safetensors")
    row = int(encoded["mask"][1].sum())
    assert row == len(heard(found, 1))
    torch.testing.assert_close(encoded["context"][1][encoded["mask"][1]], heard(found, 1), rtol=1e-4, atol=1e-5)


def test_what_each_ear_is_told(recipe: Path, own: Path) -> None:
    """Never nothing at once, but for the captions that are dropped; in the shares that were asked for."""
    asked = [*changes(own, "clip"), "own_encoder.language_dropout=0.2", "caption_dropout=0.0", "batch_size=16"]
    told: list[tuple[str, str]] = []

    def inputs(captions: Sequence[str], own: Sequence[str]) -> Any:
        told.extend(zip(captions, own, strict=True))
        return None

    trainer = Trainer(read_recipe(recipe, asked))
    order = trainer._read_data().order
    batches = Batches(trainer.recipe, trainer.latents, order, inputs, 1, 0, pin=False)
    for step in range(40):
        batches(step)
    assert len(told) == 640 and ("", "") not in told
    language, beside = (sum(not pair[ear] for pair in told) / 640 for ear in (0, 1))
    assert abs(language - 0.2) < 0.06 and abs(beside - 0.3) < 0.06
    assert all(ours == theirs for ours, theirs in told if ours and theirs)
    again = list(told)
    told.clear()
    batches(3)
    assert told == again[48:64]  # a function of seed and step


def test_a_bridge_alone_draws_the_same_noise_as_ever(recipe: Path, own: Path) -> None:
    one, two = (Trainer(read_recipe(recipe, more)) for more in ([], changes(own, "clip")))
    first, second = (trainer._read_data()(2).micro_batches[0] for trainer in (one, two))
    assert torch.equal(first.noise, second.noise) and torch.equal(first.uniform, second.uniform)


def test_what_the_own_encoder_says_is_computed_once(
    recipe: Path, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = [*changes(own, "xl"), "steps=2", f"data.cache={json.dumps(str(tmp_path / 'cache'))}"]
    trainer = Trainer(read_recipe(recipe, common))
    trainer.run()
    assert trainer.text_inputs.own is not None and trainer.text_inputs.own.encoder is None  # freed

    def refuse(*_: Any) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(OwnEncoder, "forward", refuse)
    Trainer(read_recipe(recipe, [*common, f"output={json.dumps(str(tmp_path / 'again'))}"])).run()
    with pytest.raises(AssertionError, match="asked again"):
        Trainer(read_recipe(recipe, [*common, "own_encoder.states_gb=0", f'output="{tmp_path / "b"}"', "seed=5"])).run()


def test_strengths(recipe: Path, own: Path) -> None:
    """1 = as trained, 0 = the empty prompt, between them a line; of each ear alone."""
    read = read_recipe(recipe, [*changes(own, "clip"), "steps=2"])
    bridge = Trainer(read).run()

    def context(**strengths: float) -> torch.Tensor:
        made = drawn(read, bridge, own, "clip", strengths=Strengths(**strengths)).condition(PROMPTS)
        return made.context

    whole = context()
    empty = drawn(read, bridge, own, "clip").condition([""]).context.expand(2, -1, -1)
    for ear, part in (("own", slice(0, 20)), ("bridge", slice(20, None))):
        rest = slice(20, None) if ear == "own" else slice(0, 20)
        for strength in (0.0, 0.5, 1.7):
            found = context(**{ear: strength})
            torch.testing.assert_close(found[:, rest], whole[:, rest])
            torch.testing.assert_close(found[:, part], empty[:, part] + strength * (whole - empty)[:, part])
    other = drawn(read, bridge, own, "clip").condition(PROMPTS, ["a green square", ""]).context
    torch.testing.assert_close(other[:, 20:], whole[:, 20:])
    torch.testing.assert_close(other[1, :20], empty[1, :20])
    assert not torch.allclose(other[0, :20], whole[0, :20], atol=1e-3)


@pytest.mark.parametrize("place", ["before", "after"])
def test_strengths_of_a_bridge_in_time(recipe: Path, own: Path, place: str) -> None:
    more = ["prompt.vision_mask=true", *TIMED, f"own_encoder.place={place}"]
    read = read_recipe(recipe, [*changes(own, "t5", *more), "steps=2"])
    bridge = Trainer(read).run()
    t = torch.tensor([900.0, 300.0])
    silent = drawn(read, bridge, own, "t5", strengths=Strengths(bridge=0.0)).condition(PROMPTS).at(t)
    whole, empty = (drawn(read, bridge, own, "t5").condition(texts).at(t) for texts in (PROMPTS, ["", ""]))
    ours, theirs = (slice(16, None), slice(0, 16)) if place == "before" else (slice(0, 5), slice(5, None))
    torch.testing.assert_close(silent.context[:, ours], empty.context[:, ours])
    torch.testing.assert_close(silent.context[:, theirs], whole.context[:, theirs])
    assert silent.mask is not None and torch.equal(silent.mask, whole.mask)  # type: ignore[arg-type]


def test_the_dry_run_and_inspect_tell_of_it(recipe: Path, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read = read_recipe(recipe, [*changes(own, "xl"), "steps=1", "data.count=4"])
    report = dry_run(read)
    rows = dict(report.rows)
    assert not report.problems
    assert "20 tokens before the bridge's, width 40 and a pooled vector of 20" in rows["own encoder"]
    assert "up to 3.2 kB a caption" in rows["disk for own encoder"]
    without = dry_run(replace(read, own_encoder=replace(read.own_encoder, model="")))
    kept = [dict(one.rows)["  activations"] for one in (report, without)]
    assert kept[0] != kept[1]
    bridge = Trainer(read).run()
    assert main(["inspect", str(bridge)]) == 0
    said = capsys.readouterr().out
    assert "xl/text_encoder (clip, hidden 16) and xl/text_encoder_2 (clip, hidden 24): 20 tokens before" in said


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("t5", [], "is a T5, whose padding the vision model would hear: set prompt.vision_mask = true"),
        ("xl", ["vision.model=UNET"], "gives width 40, the vision model .* takes 24: name its own text encoder"),
        ("clip", ["own_encoder.dropout=0.95"], "come to less than 1 together"),
        ("clip", ["own_encoder.place=beside"], "it must be one of 'before', 'after'"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(
    name: str, more: list[str], message: str, recipe: Path, tiny: Path, own: Path
) -> None:
    more = [change.replace("UNET", json.dumps(str(tiny / "vision"))) for change in more]
    target = ["vision.target=unet"] if any("vision.model" in change for change in more) else []
    with pytest.raises(ValueError, match=message):
        Trainer(read_recipe(recipe, [*changes(own, name), *more, *target]))


def test_a_decoder_is_refused_as_an_ear(recipe: Path, paper: Path) -> None:
    folder = paper / "models" / "Llama-2-7b-hf"
    with pytest.raises(ValueError, match="is of the family llama, which pipelines give templates and layers of their"):
        Trainer(read_recipe(recipe, [f"own_encoder.model={json.dumps(str(folder))}"]))


def test_bridges_that_are_not_heard_as_they_were_trained_are_refused(
    recipe: Path, tiny: Path, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read = read_recipe(recipe, [*changes(own, "clip"), "steps=1"])
    two = Trainer(read).run()
    one = Trainer(read_recipe(recipe, ["steps=1", f"output={json.dumps(str(tmp_path / 'one'))}"])).run()
    pipeline = drawn(read, two, own, "clip")
    assert pipeline.bridge is not None
    with pytest.raises(ValueError, match=r"trained beside the vision model's own text encoder \(clip\), which says no"):
        pipeline.bridge(PROMPTS)
    parts = tiny / "text_encoder", tiny / "vision", tiny / "vae.safetensors"
    with pytest.raises(ValueError, match="has no text_encoder/: give --own-encoder its folder"):
        Pipeline.load(two, *parts, device="cpu")
    with pytest.raises(ValueError, match="trained to be heard alone: leave out the own encoder"):
        Pipeline.load(one, *parts, device="cpu", own=own / "clip")
    with pytest.raises(ValueError, match=r"made for clip \(family clip\), the loaded model is t5 \(family t5\)"):
        Pipeline.load(two, *parts, device="cpu", own=own / "t5")
    with pytest.raises(ValueError, match="holds 2 text encoders: give --own-encoder the folder of the former"):
        Pipeline.load(two, *parts, device="cpu", own=own / "xl")
    command = ["--language-model", str(tiny / "text_encoder"), "-o", str(tmp_path / "x.safetensors")]
    (tmp_path / "prompts.txt").write_text("a")
    for bridge, more, message in (
        (two, [], "which says nothing here: give its context too"),
        (one, ["--own-encoder", str(own / "clip")], "trained to be heard alone, and an own encoder is to be heard"),
    ):
        assert main(["encode", str(bridge), *command, "--prompts", str(tmp_path / "prompts.txt"), *more]) == 2
        assert message in capsys.readouterr().err
    export = ["export", str(two), "--format", "released", "-o", str(tmp_path / "released")]
    models = ["--language-model", str(tiny / "text_encoder"), "--vision-model", str(tiny / "vision")]
    assert main([*export, *models]) == 2
    assert "which the authors' scripts do not know" in capsys.readouterr().err


def test_a_run_goes_on_with_the_same_own_encoder_alone(recipe: Path, own: Path) -> None:
    Trainer(read_recipe(recipe, [*changes(own, "clip"), "steps=2"])).run()
    with pytest.raises(ValueError, match=r"own_encoder\.place is 'before' there and 'after' here"):
        Trainer(read_recipe(recipe, [*changes(own, "clip"), "own_encoder.place=after"]), resume=True)


@pytest.mark.parametrize("name", ["clip", "xl"])
def test_a_bridge_of_two_ears_is_started_from(
    name: str, recipe: Path, own: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With its pooled vector, or without, as the ears have it; what is heard otherwise is said."""
    bridge = Trainer(read_recipe(recipe, [*changes(own, name), "steps=1"])).run()
    begun = ["steps=1", f"adapter.from={json.dumps(str(bridge))}"]
    with caplog.at_level("WARNING"):
        Trainer(read_recipe(recipe, [*changes(own, name), *begun, f"output={json.dumps(str(tmp_path / 'both'))}"]))
    assert "was trained to be heard" not in caplog.text
    alone = [one for one in changes(own, name) if not one.startswith("own_encoder")]
    read = read_recipe(recipe, [*alone, *begun, f"output={json.dumps(str(tmp_path / 'alone'))}"])
    if name == "xl":  # one that gives no pooled vector cannot be heard alone
        with pytest.raises(ValueError, match=r"gives pooled width None, the vision model .* takes 20"):
            Trainer(read)
        return
    Trainer(read)
    assert "was trained to be heard beside the own encoder, this run has it heard alone" in caplog.text
