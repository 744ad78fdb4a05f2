"""An adapter that hears the timestep, in the samplers: asked at each step's own, the language model once a prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lavi_bridge.lavi_core.adapters import Adapter
from lavi_bridge.lavi_core.bridge import Bridge
from lavi_bridge.lavi_core.checkpoint import BridgeCheckpoint
from lavi_bridge.lavi_core.conditioning import HiddenStates, TimedConditioning, stack_states
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.training.commands import main
from lavi_bridge.training.evaluation.samplers import SAMPLERS
from lavi_bridge.training.models.pair import Pair
from lavi_bridge.training.models.pipeline import Pipeline
from lavi_bridge.training.models.sampling import sample, scheduler_for
from lavi_bridge.training.models.vision_model import load_vision_model
from lavi_bridge.training.recipe import read_recipe
from safetensors.torch import load_file

pytestmark = pytest.mark.usefixtures("on_cpu")

PROMPTS = ["a red circle", "two green squares left of a blue triangle"]
KIND = ["adapter.kind=timestep_resampler", "adapter.tokens=5", "adapter.depth=1"]


@pytest.fixture
def bridge(recipe: Path, tiny: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a bridge of the recipe, with weights of some size."""

    def write(*changes: str) -> Path:
        read = read_recipe(recipe, changes)
        torch.manual_seed(2)
        pair = Pair(read, TextEncoder.load(tiny / "text_encoder"), load_vision_model(tiny / "vision"))
        for name, parameter in pair.trained().items():
            torch.nn.init.normal_(parameter, std=0.3 if name.startswith("adapter.") else 0.05)
        pair.checkpoint({}).save(tmp_path / "bridge.safetensors")
        return tmp_path / "bridge.safetensors"

    return write


@pytest.fixture
def pipeline(bridge: Callable[..., Path], tiny: Path) -> Pipeline:
    parts = tiny / "text_encoder", tiny / "vision", tiny / "vae.safetensors"
    return Pipeline.load(bridge(*KIND), *parts, device="cpu")


def test_euler_is_the_loop_that_asks_bridge_and_network_at_each_timestep(pipeline: Pipeline) -> None:
    vision, made, noise = pipeline.vision, pipeline.bridge, torch.randn(2, 4, 4, 4, generator=torch.manual_seed(1))
    assert made is not None
    scheduler, x = scheduler_for(vision.objective, 4), noise
    with torch.no_grad():
        for t in scheduler.timesteps:
            one = t.expand(1)
            parts = []
            for row, prompt in zip(x, PROMPTS, strict=True):
                yes, no = (vision.predict(row[None], one, made([text], t)) for text in (prompt, "blurry"))
                parts.append(no + 3.0 * (yes - no))
            x = scheduler.step(torch.cat(parts), t, x, return_dict=False)[0]
    found = sample(vision, pipeline.condition(PROMPTS), pipeline.condition(["blurry"]), noise, 4, 3.0)
    torch.testing.assert_close(found, vision.latents.raw(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_adapter_hears_what_the_network_hears_and_the_language_model_is_asked_once(
    sampler: str, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard, seen, asked = [], [], []
    forward, speak = Adapter.forward, TextEncoder.forward
    vision = pipeline.vision

    def adapt(self, hidden, timestep=None):
        heard.append((len(hidden.states), float("nan" if timestep is None else timestep)))
        return forward(self, hidden, timestep)

    monkeypatch.setattr(Adapter, "forward", adapt)
    monkeypatch.setattr(TextEncoder, "forward", lambda *args: (asked.append(len(args[1].ids)), speak(*args))[1])
    vision.network.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["timestep"].tolist()), with_kwargs=True
    )
    positive, negative = pipeline.condition(PROMPTS), pipeline.condition([""])
    assert not heard
    SAMPLERS[sampler](vision, positive, negative, torch.randn(2, 4, 4, 4), 3, 3.0)
    assert asked == [2, 1]
    assert [rows for rows, _ in heard] == [3, 3, 3]  # both prompts and the one that is not wanted, together
    assert [[t] * 4 for _, t in heard] == seen and len({t for _, t in heard}) == 3


def test_without_guidance_the_negative_prompt_is_not_adapted(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard, forward = [], Adapter.forward
    monkeypatch.setattr(Adapter, "forward", lambda *args: (heard.append(len(args[1].states)), forward(*args))[1])
    sample(pipeline.vision, pipeline.condition(PROMPTS), pipeline.condition([""]), torch.randn(2, 4, 4, 4), 2, 1.0)
    assert heard == [2, 2]


def test_rows_in_company_are_rows_alone(pipeline: Pipeline) -> None:
    made = pipeline.bridge
    assert made is not None
    together, t = made.hear([*PROMPTS, ""]), torch.tensor(400.0)
    rows = torch.tensor([2, 0, 1, 2])
    found = TimedConditioning(together, made.adapt, rows).at(t)
    for row, place in enumerate(rows.tolist()):
        torch.testing.assert_close(
            found.context[row], made([[*PROMPTS, ""][place]], t).context[0], rtol=1e-4, atol=1e-5
        )


def test_states_of_other_lengths_become_one_batch() -> None:
    a = HiddenStates(torch.ones(2, 3, 4), torch.tensor([[True, True, False]] * 2))
    b = HiddenStates(torch.full((1, 5, 4), 2.0), torch.ones(1, 5, dtype=torch.bool))
    states, mask, _ = stack_states([a, b])
    assert states.shape == (3, 5, 4) and mask.sum(1).tolist() == [2, 2, 5]
    assert torch.equal(states[0, :3], a.states[0]) and not states[:2, 3:].any() and torch.equal(states[2], b.states[0])


@pytest.mark.parametrize("padding", ["longest", "max_length"])
@pytest.mark.parametrize("language_mask", [True, False])
def test_a_prompt_in_company_is_what_it_is_alone(
    padding: str, language_mask: bool, bridge: Callable[..., Path], tiny: Path
) -> None:
    """Also where padding to the longest would change what the language model says."""
    for kind in (KIND, []):
        checkpoint = BridgeCheckpoint.load(bridge(*kind))
        recipe = replace(checkpoint.config.prompt, padding=padding, language_mask=language_mask)
        checkpoint.config = replace(checkpoint.config, prompt=recipe)
        made = Bridge.connect(checkpoint, TextEncoder.load(tiny / "text_encoder"))
        t = torch.tensor(700.0)
        together = made.adapt(made.hear(PROMPTS), t)
        whole = torch.ones(together.context.shape[:2], dtype=torch.bool)
        mask = whole if together.mask is None else together.mask
        called = made(PROMPTS, torch.tensor([700.0, 700.0]))
        torch.testing.assert_close(called.context[mask], together.context[mask], rtol=1e-4, atol=1e-5)
        for row, prompt in enumerate(PROMPTS):
            alone = made([prompt], t).context[0]
            torch.testing.assert_close(together.context[row][mask[row]], alone, rtol=1e-4, atol=1e-5)


def test_encode_is_told_the_timestep(bridge: Callable[..., Path], tiny: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    made, output = bridge(*KIND), tmp_path / "encoded.safetensors"
    files = ("--language-model", tiny / "text_encoder", "--prompts", tmp_path / "prompts.txt", "-o", output)
    command = ["encode", str(made), *map(str, files), "--device", "cpu"]
    assert main(command) == 2
    assert "says something else at each timestep: give --timestep, from 0" in capsys.readouterr().err
    assert main([*command, "--timestep", "1001"]) == 2
    contexts = []
    for timestep in ("250", "250.5"):
        assert main([*command, "--timestep", timestep]) == 0
        contexts.append(load_file(output)["context"])
    drawn = Pipeline.load(made, tiny / "text_encoder", tiny / "vision", tiny / "vae.safetensors", device="cpu")
    assert drawn.bridge is not None and contexts[0].shape == (2, 5, 24)
    assert load_file(output)["mask"].shape == (2, 5) and load_file(output)["mask"].all()
    with torch.no_grad():
        torch.testing.assert_close(contexts[0], drawn.bridge(PROMPTS, torch.tensor(250)).context, rtol=1e-4, atol=1e-5)
    assert not torch.equal(*contexts)
    bridge()
    assert main([*command, "--timestep", "250"]) == 2
    assert "--timestep is 250.0, but this bridge's adapter (mlp) does not hear it" in capsys.readouterr().err


def test_inspect_tells_of_options_layers_and_timestep(bridge: Callable[..., Path], capsys) -> None:
    made = bridge(*KIND, "prompt.hidden_states=learned_mean")
    capsys.readouterr()
    assert main(["inspect", str(made)]) == 0
    said = capsys.readouterr().out
    assert "timestep_resampler, 32 -> 24 -> 24" in said
    assert "tokens 5, depth 1, heads 1, outer norms true, timestep channels 320" in said
    assert "a mean of 2, weights 0." in said and "made anew at each step" in said
