"""The adapter that asks with the ids of a second tokenizer: diffusers' numbers, masks, and what it is asked with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from lavi_bridge.lavi_core import adapters
from lavi_bridge.lavi_core.conditioning import HiddenStates, stack_states
from lavi_bridge.lavi_core.config import PromptRecipe, check_positions

SIZES = {"in_width": 12, "out_width": 10, "inner": 16}


def built() -> adapters.Adapter:
    torch.manual_seed(0)
    adapter = adapters.build(adapters.configure("token_queries", **SIZES, depth=2, heads=4, vocabulary=50)).eval()
    for name, parameter in adapter.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.3)
    return adapter


def said() -> HiddenStates:
    torch.manual_seed(1)
    mask = torch.tensor([[True] * 3 + [False] * 3, [True] * 6])
    queries = torch.tensor([[3, 49, 7, 1], [5, 1, -1, -1]])
    return HiddenStates(torch.randn(2, 6, 12), mask, queries)


@torch.no_grad()
def test_the_numbers_are_diffusers() -> None:
    """Of a batch with its masks, and of 600 queries, whose places turn far."""
    from diffusers.models.condition_embedders.condition_embedder_anima import AnimaTextConditioner

    sizes: dict[str, Any] = {"source_dim": 12, "target_dim": 10, "model_dim": 16}
    sizes |= {"num_layers": 2, "num_attention_heads": 4}
    theirs, ours = AnimaTextConditioner(**sizes, target_vocab_size=50, min_sequence_length=1).eval(), built()
    theirs.load_state_dict(ours.state_dict())
    long = torch.randint(0, 50, (2, 600), generator=torch.manual_seed(2))
    for hidden in (said(), said()._replace(queries=long)):
        assert hidden.queries is not None
        asking = hidden.queries >= 0
        wanted = theirs(hidden.states, hidden.queries.clamp(min=0), asking, hidden.mask)
        heard = ours(hidden)
        assert heard.mask is not None and torch.equal(heard.mask, asking) and wanted.abs().max() > 0.5
        torch.testing.assert_close(heard.context[asking], wanted[asking], rtol=0, atol=1e-5)


@torch.no_grad()
def test_padding_shorter_queries_and_the_prompts_beside_are_not_heard() -> None:
    adapter, hidden = built(), said()
    together = adapter(hidden).context
    loud = adapter(hidden._replace(states=hidden.states.masked_fill(~hidden.mask.unsqueeze(-1), 1e4))).context
    parts = [
        HiddenStates(hidden.states[:1, :3], hidden.mask[:1, :3], torch.tensor([[3, 49, 7, 1]])),
        HiddenStates(hidden.states[1:], hidden.mask[1:], torch.tensor([[5, 1]])),
    ]
    stacked = stack_states(parts)
    assert stacked.queries is not None and hidden.queries is not None and torch.equal(stacked.queries, hidden.queries)
    for i, count in enumerate((4, 2)):
        alone = adapter(parts[i]).context[0]
        for other in (loud, together, adapter(stacked).context):
            torch.testing.assert_close(other[i, :count], alone, rtol=1e-5, atol=1e-5)
    other = adapter(hidden._replace(queries=torch.tensor([[3, 48, 7, 1], [5, 1, -1, -1]]))).context
    assert (other[0] - together[0]).abs().amax(-1).min() > 1e-4 and torch.equal(other[1, :2], together[1, :2])
    turned = adapter(hidden._replace(states=hidden.states.flip(1), mask=torch.ones_like(hidden.mask))).context
    plain = adapter(hidden._replace(mask=torch.ones_like(hidden.mask))).context
    assert (turned - plain).abs().max() > 1e-3  # the states' places are heard


def test_gradients_reach_everything_that_was_asked_with() -> None:
    adapter, hidden = built().train(), said()
    states = hidden.states.requires_grad_()
    adapter(hidden).context[0].square().sum().backward()
    for name, parameter in adapter.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    embedded = adapter.get_parameter("embed.weight").grad
    assert embedded is not None and embedded.abs().amax(-1).nonzero().flatten().tolist() == [1, 3, 7, 49]
    assert states.grad is not None and states.grad[0, 3:].abs().max() == 0


def test_a_prompt_without_a_real_token_gives_numbers() -> None:
    assert built()(said()._replace(mask=torch.zeros(2, 6, dtype=torch.bool))).context.isfinite().all()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="asks with the token ids of a second tokenizer and was given none"):
        built()(said()._replace(queries=None))
    with pytest.raises(ValueError, match=r"adapter\.vocabulary is not given, the adapter 'token_queries' is not built"):
        adapters.build(adapters.configure("token_queries", **SIZES))
    with pytest.raises(ValueError, match=r"adapter\.heads = 16 does not divide .+ 16 into heads of an even width"):
        adapters.build(adapters.configure("token_queries", **SIZES, heads=16, vocabulary=9))
    config = adapters.configure("token_queries", **SIZES, vocabulary=9)
    left = PromptRecipe(padding="longest", padding_side="left")
    with pytest.raises(ValueError, match="'token_queries' knows the places of tokens, which padding to the longest"):
        check_positions(config, left)
    check_positions(config, replace(left, padding="max_length"))


@pytest.mark.parametrize(("width", "vocabulary", "parameters"), [(1024, 32128, 134_663_680), (768, 32100, 84_264_960)])
def test_the_size_of_animas_and_of_one_between_t5_large_and_sd14(width: int, vocabulary: int, parameters: int) -> None:
    """As training/README.md has the latter."""
    config = adapters.configure("token_queries", in_width=1024, out_width=width, vocabulary=vocabulary)
    with torch.device("meta"):
        adapter = adapters.build(config)
    assert sum(p.numel() for p in adapter.parameters()) == parameters
    assert (config.depth, config.heads, config.inner_width) == (6, width // 64, width)
