"""Layers that a recipe never runs are freed, and LoRA goes into the sites that were asked for, in many families."""

from __future__ import annotations

import pytest
import torch
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.lavi_core.prompt import PromptRecipe
from lavi_bridge.tests.lavi_core.language.tiny_families import tiny_folders
from lavi_bridge.training.models.layers import drop_layers, unused_modules, used_sites
from lavi_bridge.training.models.trainable import deltas, prepare
from lavi_bridge.training.recipe import LanguageSection

# Models that ask their layers for the kind of their attention or block before one is run; and some that do not.
ASKING = ("modernbert", "big_bird", "nemotron_h", "neomme")
OTHERS = ("bert", "t5", "llama", "bart")
MIXTURES = ("mixtral", "qwen3_moe", "deepseek_v3", "minimax")
SECTION = LanguageSection(model="x", train="lora", rank=2, alpha=2.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folders(tmp_path_factory)


def say(encoder: TextEncoder, recipe: PromptRecipe) -> torch.Tensor:
    return encoder(encoder.tokenize(["a red circle"], recipe), recipe).states


@pytest.mark.parametrize("hidden_states", [1, -2, (1, 0)])
@pytest.mark.parametrize("kind", ASKING + OTHERS)
def test_an_entry_is_the_same_once_the_layers_behind_it_are_freed(kind, hidden_states, folder):
    recipe = PromptRecipe(max_length=20, hidden_states=hidden_states)
    encoder = TextEncoder.load(folder(kind))
    with torch.no_grad():
        expected = say(encoder, recipe)
        before = sum(parameter.numel() for parameter in encoder.parameters())
        unused = unused_modules(encoder, hidden_states)
        gone = {id(p): p.numel() for module in unused for p in module.parameters(recurse=False)}
        drop_layers(encoder, unused)
        assert torch.equal(say(encoder, recipe), expected)
    assert gone and sum(parameter.numel() for parameter in encoder.parameters()) == before - sum(gone.values())


def test_what_an_earlier_layer_shares_is_kept(folder):
    """Bias tables of T5 and layers of Albert belong to the layers that are run, too."""
    encoder = TextEncoder.load(folder("t5"))
    shared = encoder.layers()[2].layer[1].DenseReluDense
    encoder.layers()[0].layer[1].DenseReluDense = shared
    drop_layers(encoder, unused_modules(encoder, 1))
    assert all(weight is not None and weight.numel() for weight in shared.wi._parameters.values() if weight is not None)
    assert [*shared.parameters()] and not [*encoder.layers()[1].parameters()]


@pytest.mark.parametrize("hidden_states", [1, "last"])
@pytest.mark.parametrize("kind", MIXTURES)
def test_lora_of_a_mixture_is_where_it_was_asked_for(kind, hidden_states, folder):
    encoder = TextEncoder.load(folder(kind))
    sites = used_sites(encoder, hidden_states)
    assert (len(sites) < len(encoder.lora_sites())) == (hidden_states == 1)
    prepare(encoder.model, SECTION, sites)
    names = {name.rpartition(".lora_A")[0] for name, _ in encoder.model.named_parameters() if ".lora_A." in name}
    assert names == set(sites)
    assert set(deltas(encoder.model, sites)) == set(sites)


def test_lora_in_one_layer_of_a_mixture(folder):
    """A path, not what the end of it may be in other layers."""
    encoder = TextEncoder.load(folder("qwen3_moe"))
    prepare(encoder.model, SECTION, ["layers.1.self_attn.q_proj"])
    found = [name for name, p in encoder.model.named_parameters() if p.requires_grad]
    assert len(found) == 2 and all(name.startswith("layers.1.self_attn.q_proj.lora_") for name in found)


def test_maps_that_are_not_linear_are_refused(folder):
    encoder = TextEncoder.load(folder("ibert"))
    with pytest.raises(ValueError, match="not QuantLinear of IBertModel; set train = 'frozen'"):
        prepare(encoder.model, SECTION, encoder.lora_sites())
