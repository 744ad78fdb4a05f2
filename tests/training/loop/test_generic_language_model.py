"""Language models that no row knows, trained: their layers are dropped only after a pass has told what they can do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from lavi_bridge.lavi_core.checkpoint import BridgeCheckpoint
from lavi_bridge.training.commands import main
from lavi_bridge.training.loop.trainer import Trainer
from lavi_bridge.training.recipe import read_recipe

pytestmark = pytest.mark.usefixtures("on_cpu")


@pytest.fixture
def language_model(tiny: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    import transformers

    kind, config = request.param
    folder = tmp_path / "language"
    shutil.copytree(tiny / "text_encoder", folder, ignore=shutil.ignore_patterns("config.json", "*.safetensors"))
    torch.manual_seed(1)
    vocabulary = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    made = getattr(transformers, kind)
    made(made.config_class(vocab_size=vocabulary, **config)).save_pretrained(folder)
    return folder


GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
FNET = {**SIZES, "max_position_embeddings": 64}


@pytest.mark.parametrize("language_model", [("GPT2Model", GPT2), ("FNetModel", FNET)], indirect=True)
@pytest.mark.parametrize("hidden_states", ["2", "last", "normalized_mean"])
def test_it_is_trained(recipe: Path, language_model: Path, hidden_states: str) -> None:
    changes = [f"language.model={json.dumps(str(language_model))}", f"prompt.hidden_states={hidden_states}", "steps=2"]
    if "FNet" in (language_model / "config.json").read_text():
        changes += ["language.train=frozen"]  # it has no attention to adapt
    bridge = Trainer(read_recipe(recipe, changes)).run()
    assert BridgeCheckpoint.load(bridge).config.language.family == "generic"


@pytest.mark.parametrize("language_model", [("AlbertModel", {**SIZES, "embedding_size": 32})], indirect=True)
def test_states_that_it_does_not_have_are_refused(
    recipe: Path, language_model: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["train", str(recipe), f"--set=language.model={json.dumps(str(language_model))}"]
    assert main([*command, "--set=prompt.hidden_states=1"]) == 2
    assert "hidden_states = 1 cannot be had of" in capsys.readouterr().err


MIXTRAL = {**SIZES, "num_key_value_heads": 2, "num_local_experts": 4}
MODERN = {**SIZES, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "local_attention": 16}


@pytest.mark.parametrize("language_model", [("MixtralModel", MIXTRAL), ("ModernBertModel", MODERN)], indirect=True)
def test_an_entry_of_a_model_that_asks_its_unused_layers_or_has_experts(recipe: Path, language_model: Path) -> None:
    changes = [f"language.model={json.dumps(str(language_model))}", "prompt.hidden_states=1", "steps=2"]
    bridge = BridgeCheckpoint.load(Trainer(read_recipe(recipe, changes)).run())
    assert bridge.language_lora and all("layers.0." in path for path in bridge.language_lora)
