"""What saves memory changes nothing else: frozen weights in bf16, layers run again instead of kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.tests.training.paper import RECIPES
from lavi_bridge.training.loop.trainer import Trainer
from lavi_bridge.training.models.lora_layers import LoRALayer
from lavi_bridge.training.models.pair import Pair
from lavi_bridge.training.models.vae import vae_batch_size
from lavi_bridge.training.models.vision_model import load_vision_model
from lavi_bridge.training.recipe import read_recipe
from torch import Tensor

pytestmark = pytest.mark.usefixtures("on_cpu")

LANGUAGES = ("t5-large", "clip-vit-large-patch14", "bert", "Llama-2-7b-hf")


@pytest.mark.parametrize("pair", ["t5-large-sd14", "t5-large-sdxl", "t5-large-pixart", "llama-2-7b-sd14"])
def test_every_kind_of_model_trains_with_little_memory(
    pair: str, paper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen weights are bf16, trained ones float32, and a checkpointed step has the loss and gradient of a plain one
    to the bit, dropout and all."""
    monkeypatch.chdir(paper)
    changes = ["steps=1", "batch_size=2", "precision=bf16", "data.resolution=32", "sample.every=0"]
    seen = []
    for switch in ("false", "true"):
        output = tmp_path / switch
        recipe = read_recipe(
            RECIPES / f"{pair}.toml", [*changes, f"gradient_checkpointing={switch}", f"output={output}"]
        )
        trainer = Trainer(recipe)
        dtypes = {(p.requires_grad, p.dtype) for p in trainer.pair.parameters()}
        assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}
        trainer.run()
        seen.append(((output / "log.jsonl").read_text().partition("waited")[0], weights(trainer)))
    assert seen[0][0] == seen[1][0]
    assert all(torch.equal(seen[0][1][key], value) for key, value in seen[1][1].items())


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {key: p.detach().clone() for key, p in trainer.trained.items()}


@pytest.mark.parametrize("hidden_states", ["last", "1", "normalized_mean", "learned_mean", "[1, 0]"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_checkpointed_layers_run_twice_and_give_the_same_gradients(
    language: str, hidden_states: str, paper: Path
) -> None:
    gradients, runs = [], []
    for switch in ("false", "true"):
        changes = [f"gradient_checkpointing={switch}", f"prompt.hidden_states={hidden_states}", "prompt.max_length=16"]
        recipe = read_recipe(RECIPES / "t5-large-sd14.toml", changes)
        encoder = TextEncoder.load(paper / "models" / language, dtype=torch.float32)
        vision = load_vision_model(paper / "models" / "stable-diffusion-v1-4")
        torch.manual_seed(0)
        pair = Pair(recipe, encoder, vision).train()

        first = pair.encoder.model.get_submodule(pair.sites["language"][0])
        assert isinstance(first, LoRALayer)
        torch.nn.init.normal_(first.up)  # at its start, 0, the matrix before it has no gradient
        count = []
        handle = first.register_forward_hook(lambda *_, count=count: count.append(1))
        tokens = encoder.tokenize(["a red circle", "two blue square"], recipe.prompt)
        torch.manual_seed(1)
        x = torch.randn(2, 4, 4, 4)
        pair(tokens, x, torch.tensor([10, 900])).square().mean().backward()
        handle.remove()
        gradients.append({key: p.grad for key, p in pair.trained().items()})
        runs.append(len(count))
    assert runs == [1, 2]
    assert gradients[0].keys() == gradients[1].keys()
    for key, gradient in gradients[0].items():
        assert gradient is not None and torch.equal(gradient, gradients[1][key]), key


@pytest.mark.parametrize("pair", ["t5-large-sd14", "t5-large-pixart"])
def test_lora_takes_bf16_as_it_comes(pair: str, paper: Path) -> None:
    """A float32 copy of every adapted layer's input would be the largest thing that a step keeps."""
    recipe = read_recipe(RECIPES / f"{pair}.toml", ["precision=bf16", "prompt.max_length=16"])
    encoder = TextEncoder.load(paper / "models" / "t5-large", dtype=torch.bfloat16)
    vision = load_vision_model(paper / Path(recipe.vision.model), dtype=torch.bfloat16)
    model = Pair(recipe, encoder, vision).train()
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    tokens = encoder.tokenize(["a red circle"], recipe.prompt)
    states = model.condition(tokens)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.predict(torch.randn(1, 4, 4, 4), torch.tensor([10]), states)
    dtypes = {tensor.dtype for tensor in kept if tensor.numel() > 64}
    assert len(kept) > 100 and dtypes <= {torch.bfloat16, torch.int16, torch.long}, dtypes


def test_few_large_pictures_go_through_a_vae_at_a_time() -> None:
    assert [vae_batch_size(size) for size in (32, 128, 256, 512, 1024, 2048)] == [32, 32, 16, 4, 1, 1]
