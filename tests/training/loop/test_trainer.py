"""The trainer's arithmetic and what it writes."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from lavi_bridge.lavi_core.bridge import check_language
from lavi_bridge.lavi_core.checkpoint import BridgeCheckpoint
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.training.loop.learning_rate import learning_rate_scale
from lavi_bridge.training.loop.trainer import Trainer
from lavi_bridge.training.models.lora_layers import LoRALayer
from lavi_bridge.training.models.pipeline import Pipeline
from lavi_bridge.training.models.vision_model import load_vision_model
from lavi_bridge.training.recipe import read_recipe

pytestmark = pytest.mark.usefixtures("on_cpu")


def losses(folder: Path) -> list[float]:
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in entries if "loss" in entry]


def test_training_lowers_the_loss_and_leaves_the_frozen_weights_alone(recipe: Path, tiny: Path) -> None:
    before = load_vision_model(tiny / "vision", "unet").network.state_dict()
    trainer = Trainer(read_recipe(recipe, ["steps=60", "vision.learning_rate=3e-3", "adapter.learning_rate=3e-3"]))
    bridge = trainer.run()
    values = losses(bridge.parent)
    assert np.mean(values[-10:]) < 0.9 * np.mean(values[:10])
    after = trainer.pair.network.state_dict()
    for key, value in before.items():
        stem, _, leaf = key.rpartition(".")
        found = after.get(key, after.get(f"{stem}.base_layer.{leaf}"))
        assert found is not None and torch.equal(found.cpu(), value), key


def test_every_site_is_trained_and_lands_in_the_bridge(recipe: Path, tiny: Path) -> None:
    trainer = Trainer(read_recipe(recipe))
    checkpoint = BridgeCheckpoint.load(trainer.run())
    assert list(checkpoint.language_lora) == TextEncoder.load(tiny / "text_encoder").lora_sites()
    assert len(checkpoint.vision_lora) == len(trainer.pair.sites["vision"]) > 40
    for path, delta in {**checkpoint.language_lora, **checkpoint.vision_lora}.items():
        assert delta.up.abs().max() > 0, f"{path} was not trained"
    assert checkpoint.config.provenance["recipe"]["name"] == "tiny"
    assert checkpoint.config.vision.objective == "flow"


def test_the_bridge_file_predicts_what_the_trained_pair_predicts(recipe: Path, tiny: Path) -> None:
    trainer = Trainer(read_recipe(recipe, ["steps=20", "vision.learning_rate=1e-2"]))
    bridge, prompts = trainer.run(), ["a red circle", "two green squares"]
    pipeline = Pipeline.load(bridge, tiny / "text_encoder", tiny / "vision", tiny / "vae.safetensors")
    x, t = torch.randn(2, 4, 4, 4, generator=torch.manual_seed(3)), torch.tensor([900.0, 300.0])
    trainer.pair.eval()
    with torch.no_grad():
        tokens = trainer.pair.encoder.tokenize(prompts, trainer.recipe.prompt)
        expected = trainer.pair(tokens, x, t)
        untrained = load_vision_model(tiny / "vision", "unet").predict(x, t, pipeline.condition(prompts))
        found = pipeline.vision.predict(x, t, pipeline.condition(prompts))
    assert (found - expected).abs().max() < 5e-3 * expected.abs().max()  # the file is half precision
    assert (untrained - expected).abs().max() > 2e-2 * expected.abs().max()


def test_accumulation_changes_nothing_but_memory(recipe: Path, tmp_path: Path) -> None:
    quiet = ["language.dropout=0.0", "vision.dropout=0.0", "adapter.kind=linear", "steps=3"]
    runs = []
    for parts in (1, 2):
        output = tmp_path / f"parts{parts}"
        Trainer(read_recipe(recipe, [*quiet, f"accumulation={parts}", f"output={json.dumps(str(output))}"])).run()
        runs.append(losses(output))
    assert runs[0] == pytest.approx(runs[1], rel=1e-5)


def test_only_what_is_trained_drops_out(recipe: Path) -> None:
    """A frozen model's own dropout (BERT's and T5's is 0.1) stays off in training, LoRA's and the adapter's is on."""
    pair = Trainer(read_recipe(recipe)).pair.train()
    modules = dict(pair.named_modules())
    on = {name for name, m in modules.items() if isinstance(m, (torch.nn.Dropout, LoRALayer)) and m.training}
    assert all(isinstance(modules[name], LoRALayer) or name.startswith("adapter.") for name in on)
    assert all(any(name.startswith(part) for name in on) for part in ("encoder.", "network.", "adapter."))
    assert not any(module.training for module in pair.eval().modules())


def test_a_batch_that_does_not_divide_over_the_processes_is_refused(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Accelerator, "num_processes", 3)
    with pytest.raises(ValueError, match="batch_size 4 does not divide into 3 processes times accumulation = 2"):
        Trainer(read_recipe(recipe, ["accumulation=2"]))


def test_the_launchers_environment_does_not_override_the_recipe(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    accelerator = Trainer(read_recipe(recipe)).accelerator
    assert accelerator.mixed_precision == "no" and accelerator.gradient_accumulation_steps == 1


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(read_recipe(recipe))
    before = {key: p.detach().clone() for key, p in trainer.trained.items()}
    monkeypatch.setattr(Accelerator, "clip_grad_norm_", lambda *_: torch.tensor(float("inf")))
    with pytest.raises(ValueError, match="the gradient norm is inf at step 0"):
        trainer.run()
    assert all(torch.equal(before[key], p) for key, p in trainer.trained.items())


def test_full_training_leaves_the_layers_that_are_not_run_frozen(recipe: Path) -> None:
    trained = Trainer(read_recipe(recipe, ["language.train=full", "prompt.hidden_states=1"])).trained
    assert any("layer.0." in key for key in trained) and not any("layer.1." in key for key in trained)


def test_the_adapter_runs_in_float32_under_autocast(recipe: Path) -> None:
    pair = Trainer(read_recipe(recipe)).pair.eval()
    tokens = pair.encoder.tokenize(["a red circle"], pair.recipe.prompt)
    with torch.autocast("cpu", torch.bfloat16):
        assert pair.condition(tokens).context.dtype == torch.float32


def test_fully_trained_models_are_written_where_they_load_from(recipe: Path, tmp_path: Path) -> None:
    trainer = Trainer(read_recipe(recipe, ["language.train=full", "vision.train=full", "steps=2"]))
    trainer.run()
    network = load_vision_model(tmp_path / "run" / "vision", "unet").network.state_dict()
    assert all(torch.equal(network[key], value) for key, value in trainer.pair.network.state_dict().items())
    assert TextEncoder.load(tmp_path / "run" / "vision" / "text_encoder").config.hidden_size == 32
    assert not list((tmp_path / "run").glob("*.part")) and not list((tmp_path / "run").glob(".*.part"))


def test_schedules() -> None:
    class Stub:
        steps = 100

        class optimizer:
            kind, warmup, schedule = "adamw", 10, "cosine"

    scales = [learning_rate_scale(Stub, step) for step in range(101)]  # type: ignore[arg-type]
    assert scales[0] == 0.1 and scales[9] == scales[10] == 1.0
    assert scales[55] == pytest.approx(0.5) and scales[100] == pytest.approx(0)
    Stub.optimizer.schedule = "constant"
    assert learning_rate_scale(Stub, 99) == 1.0  # type: ignore[arg-type]


def test_a_full_disk_stops_with_the_last_good_state_intact(recipe: Path, tmp_path: Path) -> None:
    """Real writes fail: the process may write no file larger than a limit, as on a full disk."""
    Trainer(read_recipe(recipe, ["steps=2"])).run()
    kept = (tmp_path / "run" / "state" / "step-0000002" / "weights.safetensors").read_bytes()
    bridge = (tmp_path / "run" / "bridge.safetensors").read_bytes()

    def limit() -> None:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    command = [sys.executable, "-m", "lavi_bridge.training", str(recipe), "--resume"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, preexec_fn=limit)
    assert result.returncode == 2
    assert "could not be saved" in result.stderr and "step-0000002" in result.stderr
    assert (tmp_path / "run" / "state" / "step-0000002" / "weights.safetensors").read_bytes() == kept
    assert (tmp_path / "run" / "bridge.safetensors").read_bytes() == bridge
    assert not list((tmp_path / "run").rglob("*.part"))


def test_a_language_model_that_was_trained_whole_is_its_bridges_own(recipe: Path) -> None:
    """Its weights have grown by far more than a copy of them could differ."""
    trainer = Trainer(read_recipe(recipe, ["language.train=full", "steps=2", "language.learning_rate=0.3"]))
    output = trainer.run().parent
    trained = BridgeCheckpoint.load(output / "bridge.safetensors").config.language
    check_language(trained, TextEncoder.load(output / "vision" / "text_encoder").config)
    with pytest.raises(ValueError, match=r"fingerprint|size of a weight"):
        check_language(trained, trainer.pair.language_config)
