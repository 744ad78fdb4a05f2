"""Every family and the generic row: the whole model's states, no layer too many, the right LoRA sites."""

from __future__ import annotations

import re

import pytest
import torch
import transformers
from lavi_bridge.lavi_core.adapters.layer_mean import LayerMean
from lavi_bridge.lavi_core.language import LANGUAGE_FAMILIES, TextEncoder, family_of
from lavi_bridge.lavi_core.prompt import PromptRecipe

LAYERS = 3
PROMPTS = ["a red circle left of a blue square", "sea", ""]
KINDS = {  # kind -> family, LoRA sites, the first of them
    "t5": ("t5", 12, "encoder.block.0.layer.0.SelfAttention.q"),
    "clip": ("clip", 12, "encoder.layers.0.self_attn.k_proj"),
    "bert": ("bert", 12, "encoder.layer.0.attention.self.query"),
    "roberta": ("roberta", 12, "encoder.layer.0.attention.self.query"),
    "llama": ("llama", 12, "layers.0.self_attn.q_proj"),
    "qwen2": ("llama", 12, "layers.0.self_attn.q_proj"),
    "gpt_neox": ("generic", 6, "layers.0.attention.query_key_value"),
    "gpt2": ("generic", 6, "h.0.attn.c_attn"),
    "modernbert": ("generic", 6, "layers.0.attn.Wqkv"),
    "bart": ("generic", 12, "layers.0.self_attn.k_proj"),
    "mbart": ("generic", 12, "layers.0.self_attn.k_proj"),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def whole_model(kind, folder):
    """transformers' own forward, all layers."""
    if kind == "t5":
        return transformers.T5EncoderModel.from_pretrained(folder)
    if kind == "clip":
        return transformers.CLIPTextModel.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder)
    return model.get_encoder() if kind in ("bart", "mbart") else model


def test_facts(kind, language_folder):
    encoder = TextEncoder.load(language_folder(kind))
    family, count, first = KINDS[kind]
    assert encoder.config.family == family
    assert (encoder.config.hidden_size, encoder.config.num_layers) == (32, LAYERS)
    assert encoder.config.model_id == f"tiny-{kind}"
    sites = encoder.lora_sites()
    assert len(sites) == count
    assert first in sites[:3]
    assert not any("lm_head" in name or "decoder" in name for name, _ in encoder.named_modules())
    assert not encoder.training and not any(p.requires_grad for p in encoder.parameters())


@pytest.mark.parametrize("which", ["last", 0, 1, 2, -1, -2, LAYERS])
def test_states_equal_the_whole_models(kind, which, language_folder):
    folder = language_folder(kind)
    encoder = TextEncoder.load(folder)
    recipe = PromptRecipe(max_length=20, hidden_states=which)
    tokens = encoder.tokenize(PROMPTS, recipe)
    states, mask, _ = encoder(tokens, recipe)
    with torch.no_grad():
        whole = whole_model(kind, folder).eval()(
            input_ids=tokens.ids, attention_mask=tokens.mask.long(), output_hidden_states=True
        )
    last = which in ("last", -1, LAYERS)
    expected = whole.last_hidden_state if last else whole.hidden_states[which]
    assert torch.equal(mask, tokens.mask)
    torch.testing.assert_close(states[mask], expected[mask], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("which", [(2, 0), (1, -1, 1), (-2,)])
def test_several_lie_side_by_side_in_the_order_of_the_list(kind, which, language_folder):
    encoder = TextEncoder.load(language_folder(kind))
    prompts = encoder.tokenize(PROMPTS, PromptRecipe(max_length=20))
    states = encoder(prompts, PromptRecipe(max_length=20, hidden_states=which)).states
    alone = [encoder(prompts, PromptRecipe(max_length=20, hidden_states=one)).states for one in which]
    assert torch.equal(states, torch.cat(alone, dim=-1)) and states.shape[-1] == 32 * len(which)


RAN = [(0, 0), (1, 1), (-2, 2), ((0, 1), 1), ((2, -1), 3), ("last", 3), ("normalized_mean", 3), ("learned_mean", 3)]


@pytest.mark.parametrize(("which", "ran"), RAN)
def test_only_the_layers_needed_run(kind, which, ran, language_folder):
    encoder = TextEncoder.load(language_folder(kind))
    recipe = PromptRecipe(max_length=20, hidden_states=which)
    tokens = encoder.tokenize(PROMPTS, recipe)
    encoder(tokens, recipe)  # what a model can do that no row knows is found out once
    count = []
    hooks = [layer.register_forward_hook(lambda *_: count.append(1)) for layer in encoder.layers()]
    encoder(tokens, recipe)
    assert len(count) == ran
    for hook in hooks:
        hook.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in encoder.modules())


def test_normalized_mean(kind, language_folder):
    encoder = TextEncoder.load(language_folder(kind))
    recipe = PromptRecipe(max_length=20, hidden_states="normalized_mean")
    tokens = encoder.tokenize(PROMPTS, recipe)
    encoder(tokens, recipe)  # what a model can do that no row knows is found out once
    outputs = []
    for layer in encoder.layers():
        layer.register_forward_hook(lambda _m, _a, out: outputs.append(out[0] if isinstance(out, tuple) else out))
    states, *_ = encoder(tokens, recipe)
    assert len(outputs) == LAYERS
    expected = sum(
        (h - h.mean(-1, keepdim=True)) / (h.var(-1, keepdim=True, correction=0) + 1e-5).sqrt() for h in outputs
    )
    torch.testing.assert_close(states, expected / LAYERS, rtol=1e-4, atol=1e-5)


def test_the_learned_mean_of_what_is_handed_on_begins_as_the_normalized_one(kind, language_folder):
    encoder = TextEncoder.load(language_folder(kind))
    prompts = encoder.tokenize(PROMPTS, PromptRecipe(max_length=20))
    every, mean = (
        encoder(prompts, PromptRecipe(max_length=20, hidden_states=which)).states
        for which in ("learned_mean", "normalized_mean")
    )
    assert every.shape[-1] == 32 * LAYERS and every.dtype == encoder.dtype
    torch.testing.assert_close(LayerMean(LAYERS)(every.float()), mean, rtol=1e-5, atol=1e-5)


def test_padding_does_not_change_real_tokens(kind, language_folder):
    """With the mask given, a prompt says the same alone, padded on the right and padded on the left."""
    encoder = TextEncoder.load(language_folder(kind))

    def states(**changes):
        recipe = PromptRecipe(max_length=24, **changes)
        hidden = encoder(encoder.tokenize(PROMPTS[:1], recipe), recipe)
        assert torch.isfinite(hidden.states).all()
        return hidden.states[hidden.mask]

    alone = states(padding="longest")
    torch.testing.assert_close(states(), alone, rtol=1e-4, atol=1e-5)
    if kind in ("bart", "mbart"):
        with pytest.raises(ValueError, match='cannot be padded there; set padding_side = "right"'):
            states(padding_side="left")
    else:
        torch.testing.assert_close(states(padding_side="left"), alone, rtol=1e-4, atol=1e-5)


def test_without_the_mask_padding_is_attended(language_folder):
    encoder = TextEncoder.load(language_folder("t5"))
    given, not_given = PromptRecipe(max_length=24), PromptRecipe(max_length=24, language_mask=False)
    tokens = encoder.tokenize(PROMPTS, given)
    ours = encoder(tokens, not_given).states
    torch.testing.assert_close(ours, encoder.model(input_ids=tokens.ids).last_hidden_state)
    assert not torch.allclose(ours[tokens.mask], encoder(tokens, given).states[tokens.mask], atol=1e-3)


def test_gradients_reach_the_language_model(language_folder):
    for which in ("last", 2, "normalized_mean", "learned_mean", (1, 3)):
        encoder = TextEncoder.load(language_folder("llama"))
        site = encoder.model.get_submodule(encoder.lora_sites()[0])
        site.weight.requires_grad_(True)
        recipe = PromptRecipe(max_length=20, hidden_states=which)
        encoder(encoder.tokenize(PROMPTS, recipe), recipe).states.square().sum().backward()
        assert site.weight.grad is not None and site.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("which", ["last", 2, "normalized_mean", "learned_mean", (1, 2)])
@pytest.mark.parametrize("kind", ["llama", "t5", "bert"])
def test_gradient_checkpointing_changes_no_gradient(kind, which, language_folder):
    """A layer that is left early lies inside a checkpoint then. Old transformers' T5 hides its layers there."""
    recipe, grads = PromptRecipe(max_length=20, hidden_states=which), []
    for checkpointing in (False, True):
        encoder = TextEncoder.load(language_folder(kind)).train()
        for module in encoder.modules():
            for name in ("p", "dropout", "attention_dropout", "dropout_prob"):
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, 0.0)
        encoder.requires_grad_(True)
        if checkpointing:
            encoder.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        tokens = encoder.tokenize(PROMPTS, recipe)
        if checkpointing and kind == "t5" and which != "last" and transformers.__version__ < "4.57":
            with pytest.raises(ValueError, match="seen to run; if gradient checkpointing is on, turn it off"):
                encoder(tokens, recipe)
            return
        encoder(tokens, recipe).states.square().mean().backward()
        grads.append({name: p.grad for name, p in encoder.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-4, atol=1e-6)


def test_swapped_leaf_classes(language_folder):
    """ComfyUI gives leaf modules a class of its own, which casts weights as they are used."""

    class Cast(torch.nn.Linear):
        def forward(self, input):
            return torch.nn.functional.linear(input, self.weight.to(input), None if self.bias is None else self.bias)

    encoder = TextEncoder.load(language_folder("llama"))
    recipe = PromptRecipe(max_length=20, hidden_states=2)
    tokens = encoder.tokenize(PROMPTS, recipe)
    plain, sites = encoder(tokens, recipe).states, encoder.lora_sites()
    for module in encoder.modules():
        if type(module) is torch.nn.Linear:
            module.__class__ = Cast
            module.half()
    assert encoder.lora_sites() == sites
    torch.testing.assert_close(encoder(tokens, recipe).states, plain, rtol=1e-2, atol=1e-2)


def test_a_hidden_state_out_of_range(language_folder):
    encoder = TextEncoder.load(language_folder("bert"))
    for which in (4, -5):
        recipe = PromptRecipe(max_length=20, hidden_states=which)
        with pytest.raises(ValueError, match=f"hidden state {which} was asked for; a model of 3 layers has 0 to 3"):
            encoder(encoder.tokenize(["sea"], recipe), recipe)


def test_more_tokens_than_positions(language_folder):
    encoder = TextEncoder.load(language_folder("clip"))
    with pytest.raises(ValueError, match=r"200 tokens were asked for, tiny-clip has 130 positions; lower max_length"):
        encoder.tokenize(["sea"], PromptRecipe(max_length=200))


def test_the_table():
    assert family_of("llama").name == "llama"
    assert family_of("umt5").name == "t5"
    assert family_of("something-new").name == "generic"
    with pytest.raises(ValueError, match="unknown language family 'x'; known: t5, clip"):
        LANGUAGE_FAMILIES["x"]
    for row in LANGUAGE_FAMILIES.values():
        re.compile(row.lora_sites)
