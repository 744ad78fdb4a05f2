"""A bridge connected to its language model, and refused for another."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from lavi_bridge.lavi_core import adapters
from lavi_bridge.lavi_core.bridge import Bridge
from lavi_bridge.lavi_core.checkpoint import BridgeCheckpoint
from lavi_bridge.lavi_core.config import AdapterConfig, BridgeConfig, VisionConfig
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.lavi_core.lora import Delta
from lavi_bridge.lavi_core.prompt import PromptRecipe

PROMPTS = ["a red circle left of a blue square", "sea", ""]


def made_for(encoder, pooled=None, **recipe):
    torch.manual_seed(0)
    widths = {"in_width": encoder.config.hidden_size, "inner_width": 24, "out_width": 16}
    config = BridgeConfig(
        language=encoder.config,
        prompt=PromptRecipe(**{"max_length": 20, **recipe}),
        adapter=AdapterConfig(kind="mlp", **widths, pooled_width=pooled),
        vision=VisionConfig(
            model_id="v",
            target="unet",
            context_width=16,
            objective="epsilon",
            latent_channels=4,
            latent_scale=1.0,
            fingerprint="",
        ),
    )
    language = {
        path: Delta(torch.randn(2, m.in_features) * 0.3, torch.randn(m.out_features, 2) * 0.3, 1.0)
        for path in encoder.lora_sites()
        for m in [encoder.model.get_submodule(path)]
    }
    return BridgeCheckpoint(config, dict(adapters.build(config.adapter).state_dict()), language)


@pytest.fixture
def encoder(language_folder):
    return TextEncoder.load(language_folder("llama"))


def test_prompts_in_conditioning_out(encoder):
    plain = encoder(encoder.tokenize(PROMPTS, PromptRecipe(max_length=20)), PromptRecipe(max_length=20)).states
    bridge = Bridge.connect(made_for(encoder, pooled=5), encoder)
    heard = bridge(PROMPTS)
    assert heard.context.shape == (3, 20, 16) and heard.context.dtype == torch.float32
    assert heard.mask is None and heard.pooled.shape == (3, 5)
    assert not bridge.training and not any(p.requires_grad for p in bridge.parameters())
    again = bridge(PROMPTS)
    assert torch.equal(again.context, heard.context)  # no dropout is alive
    encoder.lora.remove()
    assert not torch.allclose(bridge(PROMPTS).context, heard.context, atol=1e-3)
    recipe = bridge.config.prompt
    assert torch.equal(encoder(encoder.tokenize(PROMPTS, recipe), recipe).states, plain)


def test_merged_live_and_none(encoder):
    made = made_for(encoder)
    contexts = {}
    for how in ("merged", "live", None):
        bridge = Bridge.connect(made, encoder, lora=how)
        contexts[how] = bridge(PROMPTS).context
        if how is not None:
            encoder.lora.remove()
    torch.testing.assert_close(contexts["merged"], contexts["live"], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(contexts["merged"], contexts[None], atol=1e-3)
    silent = Bridge.connect(made, encoder, strength=0.0)
    assert torch.equal(silent(PROMPTS).context, contexts[None])


def test_the_mask_goes_where_the_recipe_says(encoder):
    heard = Bridge.connect(made_for(encoder, vision_mask=True), encoder)(PROMPTS)
    tokens = encoder.tokenize(PROMPTS, PromptRecipe(max_length=20))
    assert torch.equal(heard.mask, tokens.mask)


def test_the_template_is_cut(encoder):
    cut = {"template": "describe the image : {prompt}", "cut_template": True, "max_length": 40, "vision_mask": True}
    bridge = Bridge.connect(made_for(encoder, **cut), encoder)
    heard, tokens = bridge(PROMPTS), encoder.tokenize(PROMPTS, bridge.config.prompt)
    assert heard.context.shape[1] == heard.mask.shape[1] < 40
    assert torch.equal(heard.mask.sum(1), (tokens.mask & tokens.keep).sum(1))


def test_the_adapter_runs_in_float32(language_folder):
    encoder = TextEncoder.load(language_folder("llama"), dtype=torch.bfloat16)
    bridge = Bridge.connect(made_for(encoder), encoder)
    with torch.autocast("cpu", torch.bfloat16):
        heard = bridge(PROMPTS)
    assert heard.context.dtype == torch.float32
    assert {p.dtype for p in bridge.adapter.parameters()} == {torch.float32}


def test_half_precision_weights_are_the_same_model(language_folder, encoder):
    made = made_for(encoder)
    Bridge.connect(made, TextEncoder.load(language_folder("llama"), dtype=torch.float16))


def test_another_language_model_is_refused(language_folder, encoder):
    made = made_for(encoder)

    def with_language(**changes):
        language = dataclasses.replace(made.config.language, **changes)
        adapter = dataclasses.replace(made.config.adapter, in_width=language.hidden_size)
        return dataclasses.replace(made, config=dataclasses.replace(made.config, language=language, adapter=adapter))

    wide = with_language(model_id="big", hidden_size=64)
    for allow in (False, True):
        with pytest.raises(
            ValueError,
            match=r"made for big \(hidden 64\), the loaded model is tiny-llama \(hidden 32\): load big"
            + (", since the adapter takes no other width, whatever is allowed$" if allow else "$"),
        ):
            Bridge.connect(wide, encoder, allow_other_model=allow)
    for changes, fact in (
        ({"family": "t5", "fingerprint": "0" * 64}, r"\(family t5\), .* \(family llama\)"),
        ({"num_layers": 9}, r"\(layers 9\), .* \(layers 3\)"),
        ({"vocab_size": 9}, r"\(vocabulary 9\), .* \(vocabulary 378\)"),
        ({"fingerprint": "0" * 64}, r"\(fingerprint 000000000000\), .* \(fingerprint "),
    ):
        with pytest.raises(ValueError, match=fact + ".*: load tiny-llama, or allow another model"):
            Bridge.connect(with_language(**changes), encoder)
        Bridge.connect(with_language(**changes), encoder, allow_other_model=True).encoder.lora.remove()
    Bridge.connect(with_language(family="generic"), encoder).encoder.lora.remove()  # the print is the same
    other = TextEncoder.load(language_folder("qwen2"))
    with pytest.raises(ValueError, match=r"made for tiny-llama .*, the loaded model is tiny-qwen2"):
        Bridge.connect(made, other)


def test_two_bridges_never_share_one_trunk_unseen(encoder):
    made = made_for(encoder)
    Bridge.connect(made, encoder)
    with pytest.raises(ValueError, match="tiny-llama still has another bridge's LoRA in it"):
        Bridge.connect(made, encoder)
    encoder.lora.remove()
    Bridge.connect(made, encoder, lora="live")
    encoder.lora.remove()
    with pytest.raises(ValueError, match="unknown LoRA mode 'x'; known: merged, live"):
        Bridge.connect(made, encoder, lora="x")


def test_a_refused_lora_leaves_the_model_as_it_was(encoder):
    made = made_for(encoder)
    made.language_lora["layers.9.self_attn.q_proj"] = next(iter(made.language_lora.values()))
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    with pytest.raises(ValueError, match="LlamaModel has no such module"):
        Bridge.connect(made, encoder)
    assert all(torch.equal(before[k], v) for k, v in encoder.state_dict().items())
