"""The closed-form start: it is the solution that it claims to be, for every adapter and own encoder, and repeatable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lavi_bridge.lavi_core.checkpoint import BridgeCheckpoint
from lavi_bridge.lavi_core.files import read_safetensors
from lavi_bridge.tests.training.paper import write_own_encoders
from lavi_bridge.training.loop import closed_form
from lavi_bridge.training.loop.alignment import align
from lavi_bridge.training.loop.trainer import Trainer
from lavi_bridge.training.models.own_encoder import OwnEncoder
from lavi_bridge.training.recipe import read_recipe

pytestmark = pytest.mark.usefixtures("on_cpu")

KINDS = {
    "linear": ["adapter.kind=linear"],
    "mlp": ["adapter.kind=mlp"],
    "refiner": ["adapter.kind=refiner", "adapter.depth=1"],
    "refiner of another width": ["adapter.kind=refiner", "adapter.depth=1", "adapter.inner_width=32"],
    "resampler": ["adapter.kind=resampler", "adapter.depth=1", "adapter.tokens=16"],
    "timestep_resampler": ["adapter.kind=timestep_resampler", "adapter.depth=1", "adapter.tokens=16"],
}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_own_encoders(tmp_path_factory.mktemp("own"))


def trainer(recipe: Path, output: Path, teacher: Path, *changes: str) -> Trainer:
    common = ["align.batch_size=16", "align.captions=64", "data.count=96", "language.dropout=0.0", "align.boost=3.0"]
    overrides = [*common, f"output={json.dumps(str(output))}", f"align.teacher={json.dumps(str(teacher))}", *changes]
    made = Trainer(read_recipe(recipe, overrides))
    made.pair.train()
    return made


def aligned(made: Trainer) -> float:
    return align(made.recipe, made.pair, made.source, torch.device("cpu"))


def moments_of(x: np.ndarray, y: np.ndarray) -> closed_form.Moments:
    moments = closed_form.Moments()
    for part in (slice(0, 30), slice(30, None)):
        moments.add(torch.from_numpy(x[part]), torch.from_numpy(y[part]))
    return moments


def test_ridge_is_least_squares_with_the_penalty_as_rows() -> None:
    draw = np.random.default_rng(0)
    sizes = 10.0 ** (np.arange(12) % 5)  # as unlike as a decoder's channels
    x = draw.normal(size=(90, 12)) * sizes + 5
    y = draw.normal(size=(90, 5)) + (x / sizes)[:, :5]
    penalty = 0.02
    weight, bias = closed_form.ridge(moments_of(x, y), penalty)
    rows = np.concatenate([np.ones((90, 1)), x - x.mean(0)], axis=1)
    fines = np.concatenate([np.zeros((12, 1)), np.diag(np.sqrt(penalty * 90) * x.std(0))], axis=1)
    expected, *_ = np.linalg.lstsq(np.concatenate([rows, fines]), np.concatenate([y, np.zeros((12, 5))]), rcond=None)
    np.testing.assert_allclose(weight.numpy(), expected[1:].T, rtol=1e-6)
    np.testing.assert_allclose(bias.numpy(), expected[0] - x.mean(0) @ expected[1:], rtol=1e-6)


def test_procrustes_finds_the_rotation_scale_and_offset_that_were_put_in() -> None:
    draw = np.random.default_rng(1)
    x, _ = np.linalg.qr(draw.normal(size=(200, 6)) - 0)
    x = x - x.mean(0)
    x, _ = np.linalg.qr(x)
    turn, _ = np.linalg.qr(draw.normal(size=(6, 6)))
    scale, offset = draw.uniform(1, 3, 6), draw.normal(size=6)
    weight, bias = closed_form.procrustes(moments_of(x, x @ turn * 2 + offset))
    np.testing.assert_allclose(weight.numpy(), 2 * turn.T, atol=1e-9)
    np.testing.assert_allclose(bias.numpy(), offset, atol=1e-9)
    y = x @ turn * scale
    weight, _ = closed_form.procrustes(moments_of(x, y))
    directions = (weight / weight.norm(dim=1, keepdim=True)).numpy()
    np.testing.assert_allclose(directions @ directions.T, np.eye(6), atol=1e-9)


def test_a_feature_that_never_varies_gets_no_weight() -> None:
    draw = np.random.default_rng(2)
    x, y = draw.normal(size=(40, 3)), draw.normal(size=(40, 2))
    x[:, 1] = 7
    for solve in closed_form.STARTS.values():
        weight, _ = solve(moments_of(x, y), 1e-3)
        assert weight.isfinite().all() and weight[:, 1].abs().max() < 1e-6 < weight[:, 0].abs().min()


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_start_is_nearer_than_steps_are_and_repeatable(recipe: Path, own: Path, tmp_path: Path, kind: str) -> None:
    def run(name: str, *changes: str) -> Trainer:
        return trainer(recipe, tmp_path / name, own / "clip", *KINDS[kind], *changes)

    steps = aligned(run("a", "align.steps=15"))
    first, second = run("b", "align.start=ridge"), run("c", "align.start=ridge")
    found = aligned(first)
    assert found < steps and found < 0.9
    assert aligned(second) == found
    ours, theirs = (made.pair.adapter.state_dict() for made in (first, second))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert first.pair.training


def test_a_linear_adapter_is_the_solution_and_no_optimizer_gets_nearer(recipe: Path, own: Path, tmp_path: Path) -> None:
    """On the captions that it was solved on, and by numpy on the states themselves."""
    from lavi_bridge.training.loop.alignment import Lessons

    changes = ["adapter.kind=linear", "align.start=ridge", "align.captions=16", "data.count=16", "align.ridge=1e-4"]
    made = trainer(recipe, tmp_path / "a", own / "t5", *changes)
    aligned(made)
    pair = made.pair.eval()
    lessons = Lessons(made.recipe, pair, made.source, torch.device("cpu"), OwnEncoder.load(own / "t5"))
    with torch.no_grad():
        lesson = lessons(0)
        states = pair.states(pair.encoder.tokenize(lesson.captions, made.recipe.prompt)).states
    x, y = (t[lesson.asked].double().numpy() for t in (states, lesson.target))
    fines = np.diag(np.sqrt(1e-4 * len(x)) * x.std(0))
    rows = np.concatenate([x - x.mean(0), fines])
    expected, *_ = np.linalg.lstsq(rows, np.concatenate([y - y.mean(0), np.zeros((32, 24))]), rcond=None)
    weight, _ = pair.adapter.last_map()
    np.testing.assert_allclose(weight.weight.detach().numpy(), expected.T, atol=2e-4)


def test_two_clips_with_a_pooled_vector(recipe: Path, own: Path, tmp_path: Path) -> None:
    """As diffusers' SDXL pipeline encodes, and the pooled head is solved for too."""
    import transformers as hf

    captions, folder = ["a red circle", "two blue"], own / "xl"
    said = OwnEncoder.load(folder)(captions, 20)
    states, pooled = [], torch.zeros(0)
    for part, kind in (("", hf.CLIPTextModel), ("_2", hf.CLIPTextModelWithProjection)):
        ids = hf.AutoTokenizer.from_pretrained(folder / f"tokenizer{part}")(
            captions, padding="max_length", max_length=20, return_tensors="pt"
        ).input_ids
        model: Any = kind.from_pretrained(folder / f"text_encoder{part}").eval()
        with torch.no_grad():
            out = model(ids, output_hidden_states=True)
        states.append(out.hidden_states[-2])
        pooled = out[0]
    torch.testing.assert_close(said.context, torch.cat(states, dim=-1))
    torch.testing.assert_close(said.pooled, pooled)

    changes = [f"vision.model={json.dumps(str(folder))}", "vision.target=sdxl", "adapter.kind=linear"]
    changes += [f"vision.vae={json.dumps(str(folder / 'vae'))}", "align.start=ridge"]
    made = trainer(recipe, tmp_path / "a", folder, *changes)
    before = made.pair.adapter.pooled.proj.weight.clone()  # type: ignore[union-attr]
    assert aligned(made) < 0.9

    def of_pooled() -> float:
        with torch.no_grad():
            tokens = made.pair.encoder.tokenize([made.source.caption(i, 0) for i in range(96)], made.recipe.prompt)
            target = OwnEncoder.load(folder)([made.source.plain_caption(i, 0) for i in range(96)], 16).pooled
            given = made.pair.eval().condition(tokens).pooled
            assert target is not None and given is not None
            return float((given - target).square().mean() / target.var(dim=0).mean())

    assert of_pooled() < 0.7
    made.pair.adapter.pooled.proj.weight.data = before  # type: ignore[union-attr]
    assert of_pooled() > 1


def test_two_clips_teach_by_their_prediction(recipe: Path, own: Path, tmp_path: Path) -> None:
    folder = own / "xl"
    changes = [f"vision.model={json.dumps(str(folder))}", "vision.target=sdxl", "align.prediction_steps=3", "steps=3"]
    changes += [f"vision.vae={json.dumps(str(folder / 'vae'))}", "data.count=8", "data.resolution=32"]
    assert trainer(recipe, tmp_path / "a", folder, *changes).run().is_file()
    lines = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    found = [line["loss"] for line in lines if "loss" in line]
    assert len(found) == 3 and max(found) < 0.5  # of the noise itself it is about 1
    alone = f"align.teacher={json.dumps(str(folder / 'text_encoder_2'))}"
    with pytest.raises(ValueError, match="gives width 24 and a pooled vector of none"):
        trainer(recipe, tmp_path / "b", folder, *changes, alone).run()


@pytest.mark.parametrize("start", ["ridge", "procrustes"])
def test_a_bridge_without_any_training_is_written_and_resumed_runs_end_alike(
    recipe: Path, own: Path, tmp_path: Path, start: str
) -> None:
    bare = trainer(recipe, tmp_path / "bare", own / "clip", f"align.start={start}", "steps=0", "data.count=16").run()
    state = read_safetensors(tmp_path / "bare" / "state" / "step-0000000" / "weights.safetensors")
    written = BridgeCheckpoint.load(bare).adapter
    torch.testing.assert_close(
        written["ff2.net.2.weight"].float(), state["adapter.ff2.net.2.weight"], atol=1e-2, rtol=1e-2
    )
    averaged = trainer(
        recipe, tmp_path / "averaged", own / "clip", f"align.start={start}", "steps=0", "data.count=16", "ema=0.999"
    ).run()
    assert all(torch.equal(tensor, written[key]) for key, tensor in BridgeCheckpoint.load(averaged).adapter.items())
    changes = [f"align.start={start}", "align.steps=2", "data.count=16", "steps=4"]
    whole = trainer(recipe, tmp_path / "whole", own / "clip", *changes).run()
    trainer(recipe, tmp_path / "run", own / "clip", *changes, "steps=2").run()
    common = ["align.batch_size=16", "align.captions=64", "language.dropout=0.0", "align.boost=3.0"]
    common += [f"align.teacher={json.dumps(str(own / 'clip'))}"]
    resumed = Trainer(read_recipe(recipe, [*common, *changes]), resume=True).run()
    ours, theirs = (BridgeCheckpoint.load(path).adapter for path in (whole, resumed))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["align.start=ridge"], "has no teacher"),
        (["align.start=ridge", "align.teacher=x", "adapter.kind=identity"], "'identity' has no linear map that could"),
        (["align.start=ridge", "align.teacher=x", "align.ridge=0"], "more than 0, got 0"),
        (["steps=0"], "steps must be at least 1, got 0"),
    ],
)
def test_what_has_no_solution_is_refused(recipe: Path, changes: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_recipe(recipe, changes)


def test_a_pipeline_of_unlike_encoders_is_refused(own: Path, tmp_path: Path) -> None:
    for name, source in (("text_encoder", "t5"), ("text_encoder_2", "clip")):
        (tmp_path / name).symlink_to(own / source)
    with pytest.raises(ValueError, match="families t5 and clip, known are two CLIPs and a CLIP with a T5: name"):
        OwnEncoder.load(tmp_path)
