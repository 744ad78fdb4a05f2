"""What a recipe can ask of a run besides the paper's: optimizers, averages, loss weights, validation, trackers."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lavi_bridge.lavi_core.checkpoint import BridgeCheckpoint
from lavi_bridge.training.loop import checkpoint, journal
from lavi_bridge.training.loop.bad_steps import BadSteps
from lavi_bridge.training.loop.learning_rate import learning_rate_scale
from lavi_bridge.training.loop.loss_weighting import WEIGHTINGS, loss_weights
from lavi_bridge.training.loop.optimizers import OPTIMIZERS
from lavi_bridge.training.loop.step import TrainStep
from lavi_bridge.training.loop.trainer import Trainer
from lavi_bridge.training.models.objective import Objective
from lavi_bridge.training.recipe import LossSection, OptimizerSection, read_recipe

pytestmark = pytest.mark.usefixtures("on_cpu")

VALIDATED = ["data.validation=4", "validation.every=2", "validation.bins=4"]


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def entries(folder: Path, key: str) -> list:
    return [entry[key] for entry in log_of(folder) if key in entry]


def run(recipe: Path, output: Path, *changes: str, resume: bool = False) -> Trainer:
    trainer = Trainer(read_recipe(recipe, [*changes, f"output={json.dumps(str(output))}"]), resume=resume)
    trainer.run()
    return trainer


@pytest.mark.parametrize("kind", list(OPTIMIZERS))
def test_every_optimizer_trains_and_goes_on_to_the_bit(kind: str, recipe: Path, tmp_path: Path) -> None:
    if "8bit" in kind:
        pytest.importorskip("bitsandbytes")
    changes = [f'optimizer.kind="{kind}"', "ema=0.9", "language.rank=32", "steps=4"]
    whole = run(recipe, tmp_path / "whole", *changes)
    run(recipe, tmp_path / "run", *changes, "steps=2")
    resumed = run(recipe, tmp_path / "run", *changes, resume=True)
    assert entries(tmp_path / "whole", "loss") == entries(tmp_path / "run", "loss")
    for key, parameter in whole.trained.items():
        assert torch.equal(parameter, resumed.trained[key]), key
    bridges = [BridgeCheckpoint.load(tmp_path / name / "bridge.safetensors") for name in ("whole", "run")]
    assert all(torch.equal(bridges[1].adapter[key], tensor) for key, tensor in bridges[0].adapter.items())


def test_moments_in_eight_bits_take_less_room(recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    sizes = {}
    for kind in ("adamw", "adamw8bit"):
        run(recipe, tmp_path / kind, f'optimizer.kind="{kind}"', "steps=1", "adapter.inner_width=256")
        sizes[kind] = (checkpoint.states(tmp_path / kind / "state")[-1] / "optimizer.safetensors").stat().st_size
    assert sizes["adamw8bit"] < 0.5 * sizes["adamw"]


def test_an_optimizer_whose_package_is_missing_is_named(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    with pytest.raises(ValueError, match="'schedule_free' needs the package schedulefree, which is not installed"):
        Trainer(read_recipe(recipe, ['optimizer.kind="schedule_free"']))


def test_the_bridge_is_the_average_and_training_goes_on_without_it(recipe: Path, tmp_path: Path) -> None:
    plain = run(recipe, tmp_path / "plain")
    trainer = run(recipe, tmp_path / "average", "ema=0.5")
    assert entries(tmp_path / "plain", "loss") == entries(tmp_path / "average", "loss")
    key = "ff1.net.2.weight"
    given = BridgeCheckpoint.load(tmp_path / "average" / "bridge.safetensors").adapter[key].float()
    now, average = (
        plain.trained[f"adapter.{key}"].detach(),
        dict(zip(trainer.trained, trainer.ema.ema.shadow_params, strict=True)),
    )
    assert torch.equal(trainer.trained[f"adapter.{key}"], now)
    assert torch.allclose(given, average[f"adapter.{key}"], atol=1e-3) and not torch.equal(given, now.half().float())


def test_validation_is_always_the_same_and_trains_nothing(recipe: Path, tmp_path: Path) -> None:
    """Its loss of a model that has learnt nothing is the same after every step, and by noise level."""
    still = ["adapter.learning_rate=0.0", "language.learning_rate=0.0", "vision.learning_rate=0.0"]
    trainer = run(recipe, tmp_path / "still", *VALIDATED, *still, "optimizer.weight_decay=0.0")
    found = entries(tmp_path / "still", "validation")
    assert len(found) == 3 and found[0] == found[1] == found[2] and len(found[0]["bins"]) == 4
    assert found[0]["loss"] == pytest.approx(sum(found[0]["bins"]) / 4, rel=1e-4)
    held = {trainer.latents.name(i) for i in trainer.held_out.tolist()}
    assert len(held) == 4
    run(recipe, tmp_path / "seen", *VALIDATED, "steps=30", 'optimizer.bad_steps="skip"')
    moving = entries(tmp_path / "seen", "validation")
    assert moving[0] != moving[-1]


def test_held_out_examples_are_never_trained_on(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[str] = set()
    check = BadSteps.check

    def watch(self, step, loss, norm, names, write):
        seen.update(names)
        return check(self, step, loss, norm, names, write)

    monkeypatch.setattr(BadSteps, "check", watch)
    trainer = run(recipe, tmp_path / "run", *VALIDATED, "steps=12")
    held = {trainer.latents.name(i) for i in trainer.held_out.tolist()}
    assert held and seen and not held & seen
    assert len(held | seen) == 16


def test_validation_without_held_out_examples_is_refused(recipe: Path) -> None:
    with pytest.raises(ValueError, match=r"no example is held out: set data\.validation"):
        Trainer(read_recipe(recipe, ["validation.every=1"])).run()


def objective(kind: str) -> Objective:
    steps = torch.linspace(0.9999, 0.001, 1000)
    return Objective(kind=kind, scheduler={}, alphas_cumprod=None if kind == "flow" else steps)  # type: ignore[arg-type]


@pytest.mark.parametrize("weighting", [name for name in WEIGHTINGS if name != "none"])
def test_a_weighting_is_the_same_weight_of_x0_for_every_objective(weighting: str) -> None:
    """Of one error in x_0 the three objectives see different errors; weighted they must agree, at equal SNR."""
    section = LossSection(weighting=weighting)
    vp = objective("epsilon")
    t = torch.tensor([100, 400, 800])
    snr = vp.snr(t)
    level = 1000 / (1 + snr.sqrt())  # where flow has this ratio
    assert torch.allclose(objective("flow").snr(level), snr, rtol=1e-4)
    in_x0 = {
        "epsilon": loss_weights(vp, t, section) * snr,
        "v_prediction": loss_weights(objective("v_prediction"), t, section) * (snr + 1),
        "flow": loss_weights(objective("flow"), level, section) / (level / 1000) ** 2,
    }
    assert torch.allclose(in_x0["epsilon"], in_x0["v_prediction"], rtol=1e-4)
    assert torch.allclose(in_x0["epsilon"], in_x0["flow"], rtol=1e-3)


def test_min_snr_is_the_papers_formula() -> None:
    """min(SNR, gamma) / SNR for epsilon, min(SNR, gamma) / (SNR + 1) for v: arXiv 2303.09556, section 3.4."""
    t, section = torch.tensor([5, 500, 990]), LossSection(weighting="min_snr", gamma=5.0)
    snr = objective("epsilon").snr(t)
    assert torch.allclose(loss_weights(objective("epsilon"), t, section), snr.clamp(max=5) / snr)
    assert torch.allclose(loss_weights(objective("v_prediction"), t, section), snr.clamp(max=5) / (snr + 1))


def test_loss_weights_and_offset_noise_change_what_is_trained(recipe: Path, tmp_path: Path) -> None:
    runs = {}
    for name, change in (
        ("plain", "steps=1"),
        ("snr", 'loss.weighting="min_snr"'),
        ("offset", "loss.offset_noise=0.2"),
    ):
        run(recipe, tmp_path / name, "steps=1", change)
        runs[name] = entries(tmp_path / name, "loss")[0]
    assert len(set(runs.values())) == 3


@pytest.mark.parametrize(("schedule", "half"), [("constant", 1.0), ("cosine", 0.5), ("linear", 0.5)])
def test_schedules_start_warm_up_and_end_where_they_say(schedule: str, half: float) -> None:
    optimizer = OptimizerSection(warmup=10, schedule=schedule)  # type: ignore[arg-type]
    recipe = SimpleNamespace(steps=110, optimizer=optimizer)
    scales = [learning_rate_scale(recipe, step) for step in range(111)]  # type: ignore[arg-type]
    assert scales[0] == 0.1 and scales[9] == scales[10] == 1.0
    assert scales[60] == pytest.approx(half) and scales[110] == pytest.approx(1.0 if schedule == "constant" else 0.0)


def test_a_bad_step_is_named_skipped_and_leaves_no_trace(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of step 3 is made infinite: weights after it are those before it, and the batch is listed."""
    loss = TrainStep.loss

    def broken(self, micro_batch):
        taken = vars(self).setdefault("taken", [])
        taken.append(micro_batch)
        return loss(self, micro_batch) * (float("inf") if len(taken) == 4 else 1.0)

    monkeypatch.setattr(TrainStep, "loss", broken)
    trainer = run(recipe, tmp_path / "run", 'optimizer.bad_steps="skip"')
    assert len(entries(tmp_path / "run", "loss")) == 5
    assert entries(tmp_path / "run", "skipped") == ["loss is inf"]
    listed = json.loads((tmp_path / "run" / "bad_steps.jsonl").read_text())
    assert listed["step"] == 3 and len(listed["batch"]) == 4 and "ShapeBench" in listed["batch"][0]
    assert all(torch.isfinite(p).all() for p in trainer.trained.values())
    with pytest.raises(ValueError, match=r"the loss is inf at step 3, on the batch ShapeBench .* and 1 more"):
        run(recipe, tmp_path / "stopped")


def test_an_exploding_loss_is_a_bad_step(tmp_path: Path) -> None:
    bad_steps = BadSteps(OptimizerSection(explosion=10.0), tmp_path)
    for step in range(30):
        assert bad_steps.check(step, 0.5, 1.0, ["a"], True) is None
    assert bad_steps.check(30, 4.9, 1.0, ["a"], True) is None
    again = BadSteps(OptimizerSection(explosion=10.0, bad_steps="skip"), tmp_path)
    again.restore(bad_steps.dump())
    assert "times the usual" in (again.check(31, 50.0, 1.0, ["b", "c"], True) or "")
    with pytest.raises(ValueError, match=r"times the usual .* on the batch b, c"):
        bad_steps.check(31, 50.0, 1.0, ["b", "c"], True)
    with pytest.raises(ValueError, match="loss is nan"):
        for step in range(40):
            again.check(step, float("nan"), 1.0, ["d"], False)


def test_a_frozen_language_model_is_asked_once(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The losses are those of a run that asks it at every step, and a second run over the same cache asks nothing."""
    from lavi_bridge.training.models.pair import Pair

    still = ["language.train=frozen", f"data.cache={json.dumps(str(tmp_path / 'cache'))}", "prompt.vision_mask=true"]
    still += ["adapter.kind=linear", "vision.dropout=0.0"]  # the draws of dropout differ with the length of padding
    run(recipe, tmp_path / "asked", *still, "language.states_gb=0.0")
    run(recipe, tmp_path / "kept", *still)
    assert entries(tmp_path / "kept", "loss") == pytest.approx(entries(tmp_path / "asked", "loss"), rel=1e-5)
    trainer = Trainer(read_recipe(recipe, [*still, f"output={json.dumps(str(tmp_path / 'again'))}"]))
    calls: list[int] = []
    forward = type(trainer.pair.encoder).forward
    monkeypatch.setattr(
        type(trainer.pair.encoder), "forward", lambda self, *args: (calls.append(1), forward(self, *args))[1]
    )
    trainer.run()
    assert isinstance(trainer.pair, Pair) and not calls
    assert entries(tmp_path / "again", "loss") == entries(tmp_path / "kept", "loss")


def test_compiled_layers_train_alike(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are captured and differentiated as for any backend; the default one takes minutes to build its kernels."""
    compile_module, graphs = torch.nn.Module.compile, []
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self: (graphs.append(self), compile_module(self, backend="aot_eager"))
    )
    quiet = ["language.dropout=0.0", "vision.dropout=0.0", "adapter.kind=linear", "steps=2"]
    run(recipe, tmp_path / "plain", *quiet)
    run(recipe, tmp_path / "compiled", *quiet, "compile=true")
    assert entries(tmp_path / "compiled", "loss") == pytest.approx(entries(tmp_path / "plain", "loss"), rel=1e-3)
    assert len(graphs) == 2 + 5  # layers of the language model; what has a twin in the U-Net


def test_the_run_folder_tells_the_run(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run(recipe, tmp_path / "run", 'trackers=["tensorboard", "wandb"]', *VALIDATED)
    folder = tmp_path / "run"
    for name in ("recipe.json", "environment.json", "log.jsonl", "curves.png", "bridge.safetensors"):
        assert (folder / name).stat().st_size > 0
    assert list((folder / "tensorboard").glob("events*")) and list((folder / "wandb").glob("offline-run-*"))
    first = log_of(folder)[0]
    assert {"step", "loss", "norm", "learning_rate", "images_per_second", "waited"} <= first.keys()
    assert first["learning_rate"].keys() == {"adapter", "language", "vision"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["loss.weighting=minsnr"], "loss weighting"),
        (["validation.every=2"], "no example is held out"),
        (['trackers=["wandb"]'], "trackers names wandb, whose package is not installed"),
    ],
)
def test_what_no_step_could_be_trained_with_is_refused_before_anything_is_computed(
    changes: list[str], words: str, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lavi_bridge.training.loop.beforehand.find_spec", lambda name: None if name == "wandb" else 1)
    with pytest.raises(ValueError, match=words):
        run(recipe, tmp_path / "run", *changes)
    assert not (tmp_path / "run" / "latents").exists() and not (tmp_path / "run" / "state").exists()


def test_no_clipping_is_zero(recipe: Path, tmp_path: Path) -> None:
    """As sd-scripts' max_grad_norm and DeepSpeed's gradient_clipping say it."""
    changes = ["optimizer.weight_decay=0.0", "steps=2", "language.dropout=0.0", "vision.dropout=0.0"]
    free = run(recipe, tmp_path / "free", *changes, "optimizer.clip_norm=0")
    wide = run(recipe, tmp_path / "wide", *changes, "optimizer.clip_norm=1e9")
    assert all(torch.equal(p, wide.trained[key]) for key, p in free.trained.items())
    assert any(not torch.equal(p, one) for p, one in zip(free.trained.values(), initial(recipe, changes), strict=True))
    with pytest.raises(ValueError, match=r"optimizer\.clip_norm is a norm, or 0 for no clipping, got -1"):
        read_recipe(recipe, ["optimizer.clip_norm=-1"])


def initial(recipe: Path, changes: list[str]) -> list[torch.Tensor]:
    return [p.detach() for p in Trainer(read_recipe(recipe, changes)).trained.values()]


def test_curves_that_take_long_are_drawn_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, drawn = [0.0], []

    def draw(*_: Path) -> None:
        now[0] += 10.0
        drawn.append(now[0])

    monkeypatch.setattr(journal, "draw_curves", draw)
    monkeypatch.setattr(journal.time, "monotonic", lambda: now[0])
    log = journal.Journal(SimpleNamespace(trackers=()), tmp_path, 0)  # type: ignore[arg-type]
    for _ in range(100):
        now[0] += 30.0
        log.draw(False)
    log.close()
    assert drawn[0] == 100.0 and [round(b - a) for a, b in pairwise(drawn)] == [520] * (len(drawn) - 1)


def test_layers_that_are_not_run_are_not_held(recipe: Path) -> None:
    whole, cut = (Trainer(read_recipe(recipe, [f"prompt.hidden_states={n}"])).pair for n in ('"last"', "1"))
    count = [sum(p.numel() for p in pair.encoder.parameters()) for pair in (whole, cut)]
    assert count[1] < count[0]
    tokens = cut.encoder.tokenize(["a red circle"], cut.recipe.prompt)
    assert cut.condition(tokens).context.shape == whole.condition(tokens).context.shape


@pytest.mark.parametrize("adapter", ["mlp", "linear"])
def test_padding_that_nobody_hears_is_left_out(adapter: str, recipe: Path) -> None:
    """With both masks the prediction is the same without it; where padding is heard, it stays."""
    masked = ["prompt.language_mask=true", "prompt.vision_mask=true", f"adapter.kind={adapter}"]
    pair = Trainer(read_recipe(recipe, masked)).pair.eval()
    tokens = pair.encoder.tokenize(["a red circle", "two green squares"], pair.recipe.prompt)
    short = tokens.trimmed(pair.recipe.prompt)
    assert tokens.ids.shape[1] == 16 and short.ids.shape[1] == 8
    x, t = torch.randn(2, 4, 4, 4, generator=torch.manual_seed(0)), torch.tensor([900.0, 300.0])
    with torch.no_grad():
        whole, cut = pair(tokens, x, t), pair(short, x, t)
    assert (whole - cut).abs().max() < 1e-5 * whole.abs().max()
    heard = read_recipe(recipe, ["prompt.vision_mask=false"]).prompt
    assert tokens.trimmed(heard) is tokens
