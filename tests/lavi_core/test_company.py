"""A prompt does not depend on the prompts beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lavi_bridge.lavi_core import adapters
from lavi_bridge.lavi_core.bridge import Bridge
from lavi_bridge.lavi_core.checkpoint import BridgeCheckpoint
from lavi_bridge.lavi_core.config import AdapterConfig, BridgeConfig, VisionConfig
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.lavi_core.prompt import PromptRecipe
from lavi_bridge.training.models.bridge_files.encoding import encode_prompts

from .conftest import tiny_config, write_tokenizer

PROMPTS = ["a dog", "a glass jar full of colorful candy on a wooden table in a cozy kitchen", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import transformers

    path = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    transformers.BertModel(tiny_config("bert", len(write_tokenizer(path)))).save_pretrained(path)
    return path


def bridge(folder: Path, **recipe) -> Bridge:
    encoder = TextEncoder.load(folder)
    config = AdapterConfig(kind="linear", in_width=32, inner_width=32, out_width=12)
    vision = VisionConfig(
        model_id="v",
        target="sd1",
        context_width=12,
        objective="epsilon",
        latent_channels=4,
        latent_scale=1.0,
        fingerprint=None,
    )
    torch.manual_seed(1)
    state = adapters.build(config).state_dict()
    whole = BridgeConfig(
        language=encoder.config, prompt=PromptRecipe(max_length=60, **recipe), adapter=config, vision=vision
    )
    return Bridge.connect(BridgeCheckpoint(whole, dict(state)), encoder)


@pytest.mark.parametrize("language_mask", [True, False])
@pytest.mark.parametrize("vision_mask", [True, False])
@pytest.mark.parametrize("padding", ["longest", "max_length"])
def test_a_prompt_in_company_is_what_it_is_alone(folder: Path, padding: str, vision_mask: bool, language_mask: bool):
    connected = bridge(folder, padding=padding, vision_mask=vision_mask, language_mask=language_mask)
    together = connected(PROMPTS)
    encoded = encode_prompts(connected, PROMPTS)
    for i, prompt in enumerate(PROMPTS):
        alone = connected([prompt])
        real = slice(None) if alone.mask is None else alone.mask[0]
        expected = alone.context[0, real]
        mask = torch.ones(together.context.shape[1]) > 0 if together.mask is None else together.mask[i]
        torch.testing.assert_close(together.context[i, mask], expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(encoded["context"][i, encoded["mask"][i]], expected, rtol=0, atol=1e-5)


def test_padding_to_the_longest_that_is_attended_to_varies():
    assert PromptRecipe(padding="longest").varies_with_batch
    assert PromptRecipe(padding="longest", vision_mask=True, language_mask=False).varies_with_batch
    assert not PromptRecipe(padding="longest", vision_mask=True).varies_with_batch
    assert not PromptRecipe().varies_with_batch
