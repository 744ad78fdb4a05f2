"""The vision model's own prediction as the target: it is that of the untouched model, it teaches, and it resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lavi_bridge.lavi_core.checkpoint import BridgeCheckpoint
from lavi_bridge.lavi_core.conditioning import Conditioning
from lavi_bridge.tests.training.paper import tokenizer
from lavi_bridge.training.dry_run import dry_run
from lavi_bridge.training.dry_run.report import in_bytes
from lavi_bridge.training.loop.trainer import Trainer
from lavi_bridge.training.models import vision_model
from lavi_bridge.training.recipe import read_recipe
from safetensors.torch import load_file

pytestmark = pytest.mark.usefixtures("on_cpu")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import transformers as hf

    folder = tmp_path_factory.mktemp("own")
    sizes: Any = {"vocab_size": 32, "hidden_size": 24, "intermediate_size": 48, "eos_token_id": 1}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 20}
    torch.manual_seed(2)
    hf.CLIPTextModel(hf.CLIPTextConfig(**sizes)).save_pretrained(folder)
    tokenizer("<s> $A </s>").save_pretrained(folder)
    return folder


def losses(output: Path) -> list[float]:
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_the_target_is_the_untouched_models_and_has_no_gradient(recipe: Path, tiny: Path) -> None:
    pair = Trainer(read_recipe(recipe)).pair.train()
    with torch.no_grad():
        for _, p in pair.group("vision"):
            p.add_(0.1)  # LoRA that speaks
    bare = vision_model.load_vision_model(tiny / "vision")
    x, timesteps, heard = torch.randn(2, 4, 4, 4), torch.tensor([100.0, 900.0]), Conditioning(torch.randn(2, 20, 24))
    tokens = pair.encoder.tokenize(["a red circle", ""], pair.recipe.prompt)
    prediction, taught = pair(tokens, x, timesteps, heard)
    with torch.no_grad():
        assert torch.equal(taught, bare.predict(x, timesteps, heard))
    assert prediction.requires_grad and not taught.requires_grad
    assert not torch.equal(pair.predict(x, timesteps, heard), taught)  # LoRA is back


@pytest.mark.parametrize("kind", ["mlp", "timestep_resampler"])
def test_it_teaches_alone(recipe: Path, own: Path, tmp_path: Path, kind: str) -> None:
    changes = [f"adapter.kind={kind}", "steps=60", "align.prediction_steps=60", "save_every=60", "vision.train=frozen"]
    changes += [f"align.teacher={json.dumps(str(own))}", "language.dropout=0.0", "adapter.learning_rate=3e-3"]
    if kind != "mlp":
        changes += ["adapter.depth=1", "adapter.tokens=8"]
    Trainer(read_recipe(recipe, changes)).run()
    found = losses(tmp_path / "run")
    assert sum(found[-10:]) < 0.8 * sum(found[:10])
    assert max(found) < 0.5  # of the noise itself the loss is about 1


def test_a_dry_run_counts_its_weights(recipe: Path, own: Path) -> None:
    report = dry_run(read_recipe(recipe, ["align.prediction_steps=4", f"align.teacher={json.dumps(str(own))}"]))
    stored = sum(tensor.numel() for tensor in load_file(own / "model.safetensors").values())
    assert ("  teacher", in_bytes(4 * stored)) in report.rows and not report.problems


def test_before_pictures_it_resumes_to_the_bit(recipe: Path, own: Path, tmp_path: Path) -> None:
    changes = ["align.prediction_steps=4", f"align.teacher={json.dumps(str(own))}"]
    whole = Trainer(read_recipe(recipe, [*changes, f"output={json.dumps(str(tmp_path / 'whole'))}"])).run()
    found = losses(tmp_path / "whole")
    assert max(found[:4]) < min(found[4:])  # then pictures are the target
    Trainer(read_recipe(recipe, [*changes, "steps=4"])).run()
    for state in ("step-0000004",):  # killed in the middle of the teacher's steps
        (tmp_path / "run" / "state" / state).rename(tmp_path / state)
    resumed = Trainer(read_recipe(recipe, changes), resume=True)
    assert resumed.step == 2
    ours, theirs = (BridgeCheckpoint.load(path) for path in (whole, resumed.run()))
    assert all(torch.equal(ours.adapter[key], theirs.adapter[key]) for key in ours.adapter)


def test_the_loss_of_pictures_is_not_taken_for_an_explosion(recipe: Path, own: Path, tmp_path: Path) -> None:
    changes = ["align.prediction_steps=22", "steps=24", "save_every=24", f"align.teacher={json.dumps(str(own))}"]
    Trainer(read_recipe(recipe, [*changes, "optimizer.explosion=2.5", "optimizer.bad_steps=stop"])).run()
    found = losses(tmp_path / "run")
    assert len(found) == 24 and found[22] > 2.5 * sum(found[2:22]) / 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["align.prediction_steps=7", "align.teacher=x"], "is 7, they are the first of the run's 6"),
        (["align.prediction_steps=6", "align.teacher=x", "vision.train=full"], "needs the vision model as it was"),
        (["align.prediction_steps=6"], "has no teacher"),
    ],
)
def test_what_cannot_teach_is_refused(recipe: Path, changes: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_recipe(recipe, changes)


def test_a_teacher_of_another_width_is_refused(recipe: Path, tiny: Path) -> None:
    teacher = f"align.teacher={json.dumps(str(tiny / 'text_encoder'))}"
    with pytest.raises(ValueError, match="gives width 32 and a pooled vector of none, the vision model takes 24"):
        Trainer(read_recipe(recipe, ["align.prediction_steps=6", teacher])).run()
