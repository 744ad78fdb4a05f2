"""An adapter kind and a language family from outside of the tree: trained, saved, loaded and sampled with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lavi_bridge.lavi_core.adapters import ADAPTERS, Adapter
from lavi_bridge.lavi_core.bridge import Bridge
from lavi_bridge.lavi_core.checkpoint import BridgeCheckpoint
from lavi_bridge.lavi_core.config import AdapterConfig
from lavi_bridge.lavi_core.language import LANGUAGE_FAMILIES, LanguageFamily, TextEncoder
from lavi_bridge.training.commands import main
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("on_cpu")


class BottleneckAdapter(Adapter):
    """Down to ``inner_width``, up again, with a normalisation between."""

    def __init__(self, config: AdapterConfig):
        super().__init__(config)
        self.down = nn.Linear(config.in_width, config.inner_width)
        self.norm = nn.LayerNorm(config.inner_width)
        self.up = nn.Linear(config.inner_width, config.out_width)

    def context(self, states: Tensor) -> Tensor:
        return self.up(torch.tanh(self.norm(self.down(states))))


DISTILBERT = LanguageFamily(
    name="distilbert",
    model_types=("distilbert",),
    lora_sites=r"transformer\.layer\.\d+\.attention\.[qkv]_lin",  # the generic row takes out_lin too
    layers="transformer.layer",
)


@pytest.fixture
def registered() -> Iterator[None]:
    ADAPTERS.register("bottleneck", BottleneckAdapter)
    LANGUAGE_FAMILIES.register("distilbert", DISTILBERT)
    yield
    del ADAPTERS._rows["bottleneck"], LANGUAGE_FAMILIES._rows["distilbert"]


@pytest.fixture
def language_model(tiny: Path, tmp_path: Path) -> Path:
    from transformers import DistilBertConfig, DistilBertModel

    folder = tmp_path / "distilbert"
    shutil.copytree(tiny / "text_encoder", folder, ignore=shutil.ignore_patterns("config.json", "*.safetensors"))
    torch.manual_seed(1)
    vocabulary = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    config = DistilBertConfig(
        vocab_size=vocabulary, dim=40, hidden_dim=48, n_layers=2, n_heads=2, max_position_embeddings=24
    )
    DistilBertModel(config).save_pretrained(folder)
    return folder


@pytest.mark.usefixtures("registered")
def test_both_are_trained_saved_loaded_and_sampled_with(
    recipe: Path, tiny: Path, language_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    changes = ("adapter.kind=bottleneck", "adapter.inner_width=12", f'language.model="{language_model}"')
    assert main(["train", str(recipe), *(f"--set={change}" for change in changes)]) == 0
    path = Path(capsys.readouterr().out.strip())

    checkpoint = BridgeCheckpoint.load(path)
    assert (checkpoint.config.adapter.kind, checkpoint.config.language.family) == ("bottleneck", "distilbert")
    assert {key.partition(".")[0] for key in checkpoint.adapter} == {"down", "norm", "up"}
    sites = [f"transformer.layer.{i}.attention.{name}_lin" for i in range(2) for name in "qkv"]
    assert sorted(checkpoint.language_lora) == sorted(sites)
    learnt = [delta.up for delta in checkpoint.language_lora.values()]
    assert all(up.abs().max() > 0 for up in learnt)  # they start as zeros

    bridge = Bridge.connect(checkpoint, TextEncoder.load(language_model, dtype=torch.float32))
    assert isinstance(bridge.adapter, BottleneckAdapter)
    context = bridge(["a red circle"]).context
    assert context.shape == (1, 16, 24) and torch.isfinite(context).all()

    picture = tmp_path / "sample.png"
    parts = ("--language-model", language_model, "--vision-model", tiny / "vision", "--vae", tiny / "vae.safetensors")
    options = ("--size", "32", "--steps", "2", "-o", picture)
    assert main(["sample", str(path), "a red circle", *map(str, (*parts, *options))]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_bridge_of_an_unknown_kind_names_the_known_ones(recipe: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["train", str(recipe), "--set=adapter.kind=bottleneck"]) == 2
    assert "unknown adapter 'bottleneck'; known: mlp, linear, identity" in capsys.readouterr().err


def test_no_row_is_replaced() -> None:
    with pytest.raises(ValueError, match="the adapter 'mlp' is there already"):
        ADAPTERS.register("mlp", BottleneckAdapter)
