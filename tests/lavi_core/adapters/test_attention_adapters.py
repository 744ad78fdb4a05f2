"""The adapters that mix tokens, and the learned mean of layers before any."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lavi_bridge.lavi_core import adapters
from lavi_bridge.lavi_core.adapters.attention import Attention
from lavi_bridge.lavi_core.conditioning import HiddenStates
from lavi_bridge.lavi_core.config import AdapterConfig

KINDS = ("resampler", "timestep_resampler", "refiner", "perceiver", "compressor")
OWN = ("resampler", "timestep_resampler", "perceiver", "compressor")
TIME = torch.tensor([900.0, 30.5])


def built(kind: str, pooled: int | None = None, layers: int | None = None, **more: Any) -> adapters.Adapter:
    """Widths 12 -> 16 -> 10, and weights that are all of some size."""
    options = {"depth": 2, "heads": 4, "inner": 16} | ({"tokens": 5} if kind in OWN else {})
    options |= {"timestep_channels": 8} if kind == "timestep_resampler" else {}
    torch.manual_seed(0)
    config = adapters.configure(kind, in_width=12, out_width=10, pooled_width=pooled, layers=layers, **options | more)
    adapter = adapters.build(config).eval()
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return adapter


def said(width: int = 12) -> HiddenStates:
    torch.manual_seed(1)
    return HiddenStates(torch.randn(2, 6, width), torch.tensor([[True] * 3 + [False] * 3, [True] * 6]))


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_gradients(kind: str) -> None:
    adapter, hidden = built(kind, pooled=7).train(), said()
    states = hidden.states.requires_grad_()
    heard = adapter(hidden, TIME)
    assert heard.context.shape == (2, 5 if kind in OWN else 6, 10)
    assert heard.pooled is not None and heard.pooled.shape == (2, 7)
    assert (heard.mask is None) == adapter.own_tokens == (kind in OWN)
    (heard.context.square().sum() + heard.pooled.sum()).backward()
    for name, parameter in adapter.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert states.grad is not None
    outside = states.grad[~hidden.mask].abs().amax()  # of padding: a refiner's own token, that nothing else hears
    assert (outside > 0) == (kind == "refiner") and states.grad[hidden.mask].abs().amin(-1).min() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_of_what_blocks_add_and_of_training_alone(kind: str) -> None:
    adapter, hidden = built(kind), said()
    names, plain = list(adapter.state_dict()), adapter(hidden, TIME).context
    adapter.set_dropout(0.5)
    assert torch.equal(adapter(hidden, TIME).context, plain) and list(adapter.state_dict()) == names
    adapter.train()
    once, twice = (adapter(hidden, TIME).context for _ in range(2))
    assert not torch.allclose(once, twice)
    adapter.set_dropout(1.0)  # of blocks that add nothing each token's own path is left
    bare = adapter(hidden, TIME).context
    if kind == "refiner":
        assert torch.allclose(bare, adapter.norm_out(adapter.proj_out(adapter.proj_in(adapter.norm_in(hidden.states)))))
    adapter.set_dropout(0.0)
    assert torch.equal(adapter(hidden, TIME).context, plain)


def test_dropout_of_a_kind_that_has_nothing_to_drop_is_refused() -> None:
    linear = adapters.build(adapters.configure("linear", in_width=12, out_width=10))
    with pytest.raises(ValueError, match=r"adapter.dropout is 0.3, the adapter 'linear' has nothing in its middle"):
        linear.set_dropout(0.3)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_the_prompts_beside_are_not_heard(kind: str) -> None:
    adapter, hidden = built(kind, pooled=7), said()
    together = adapter(hidden, TIME)
    loud = adapter(hidden._replace(states=hidden.states.masked_fill(~hidden.mask.unsqueeze(-1), 1e4)), TIME)
    alone = adapter(HiddenStates(hidden.states[:1, :3], hidden.mask[:1, :3]), TIME[:1])
    real = slice(None) if adapter.own_tokens else slice(0, 3)
    for other in (loud, alone):
        torch.testing.assert_close(other.context[0, real], together.context[0, real], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(other.pooled[0], together.pooled[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_token_that_is_given_hears_every_real_one_of_its_prompt_alone(kind: str) -> None:
    adapter, hidden = built(kind), said()
    for place in range(6):
        other = hidden.states.clone()
        other[1, place] *= -1
        heard = adapter(hidden._replace(states=other), TIME).context
        change = (heard - adapter(hidden, TIME).context).abs().amax(-1)
        assert change[0].max() == 0 and change[1].min() > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_without_a_real_token_gives_numbers(kind: str) -> None:
    hidden = said()._replace(mask=torch.zeros(2, 6, dtype=torch.bool))
    assert built(kind)(hidden, TIME).context.isfinite().all()


def test_the_timestep_is_heard_row_by_row_and_asked_for() -> None:
    adapter, hidden = built("timestep_resampler"), said()
    both = adapter(hidden, TIME).context
    for i in range(2):
        row = HiddenStates(hidden.states[i : i + 1], hidden.mask[i : i + 1])
        torch.testing.assert_close(adapter(row, TIME[i : i + 1]).context[0], both[i], rtol=1e-5, atol=1e-5)
    one = adapter(hidden, torch.tensor(900)).context  # of any number type, one for all
    torch.testing.assert_close(one[0], both[0], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(one[1], both[1], atol=1e-3)
    assert not torch.allclose(adapter(hidden, TIME + 0.5).context, both, atol=1e-6)  # not rounded
    with pytest.raises(ValueError, match="'timestep_resampler' gives another context at each timestep"):
        adapter(hidden)


@pytest.mark.parametrize("kind", ["mlp", "linear", "projection", "resampler", "refiner", "perceiver"])
def test_other_kinds_leave_the_timestep_alone(kind: str) -> None:
    options = {} if kind in ("mlp", "linear", "projection") else {"depth": 1, "heads": 1}
    config = adapters.configure(kind, in_width=12, out_width=10, **options)
    adapter, hidden = adapters.build(config).eval(), said()
    assert not adapter.hears_timestep
    assert torch.equal(adapter(hidden, TIME).context, adapter(hidden).context)


def test_attention_is_torchs() -> None:
    torch.manual_seed(0)
    ours, theirs = Attention(16, 4), torch.nn.MultiheadAttention(16, 4, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    x, heard, mask = torch.randn(2, 3, 16), torch.randn(2, 6, 16), said().mask
    expected = theirs(x, heard, heard, key_padding_mask=~mask, need_weights=False)[0]
    torch.testing.assert_close(ours(x, heard, mask), expected, rtol=1e-5, atol=1e-5)


def test_the_learned_mean_begins_as_the_plain_one_and_weighs_layers() -> None:
    config = adapters.configure("identity", in_width=12, out_width=12, layers=3)
    adapter = adapters.build(config)
    assert config.state_width == 36 and list(adapter.state_dict()) == ["layer_mean.logits"]
    hidden = said(36)
    layers = [F.layer_norm(part, (12,)) for part in hidden.states.split(12, dim=-1)]
    torch.testing.assert_close(adapter(hidden).context, sum(layers) / 3)
    assert adapter.layer_mean is not None
    with torch.no_grad():
        adapter.layer_mean.logits.copy_(torch.tensor([0.0, 50.0, 0.0]))
    torch.testing.assert_close(adapter(hidden).context, layers[1])


def test_frozen_weights_of_layers_have_a_gradient_of_zeros() -> None:
    adapter = built("refiner", layers=3)
    assert adapter.layer_mean is not None
    free = adapter(said(36)).context
    for frozen in (False, True):
        adapter.layer_mean.frozen = frozen
        adapter.zero_grad()
        found = adapter(said(36)).context
        found.square().sum().backward()
        gradient = adapter.layer_mean.logits.grad
        assert gradient is not None and bool(gradient.any()) != frozen and torch.equal(found, free)


def test_what_is_not_given_is_filled_in() -> None:
    assert adapters.configure("mlp", in_width=1024, out_width=768) == AdapterConfig(
        kind="mlp", in_width=1024, inner_width=896, out_width=768
    )
    made = adapters.configure("timestep_resampler", in_width=2048, out_width=768, tokens=77)
    assert (made.inner_width, made.tokens, made.depth, made.heads) == (768, 77, 6, 12)
    assert (made.outer_norms, made.timestep_channels) == (True, 320)
    assert adapters.configure("refiner", in_width=8, out_width=24).heads == 1


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("mlp", {"depth": 3}, "adapter.depth is 3, the adapter 'mlp' has none of the kind: leave it out"),
        ("refiner", {"tokens": 3}, "adapter.tokens is 3, the adapter 'refiner' has depth, heads, outer_norms: leave"),
        ("resampler", {"tokens": 0}, "adapter.tokens must be at least 1, got 0"),
        ("resampler", {"heads": 3}, "adapter.heads = 3 does not divide the adapter's inner width 10"),
        ("timestep_resampler", {"timestep_channels": 7}, "adapter.timestep_channels must be even"),
    ],
)
def test_options_that_do_not_fit_are_refused(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adapters.build(adapters.configure(kind, in_width=12, out_width=10, **options))
    if kind == "mlp":
        with pytest.raises(ValueError, match=message):
            adapters.build(AdapterConfig(kind=kind, in_width=12, inner_width=11, out_width=10, **options))


def test_a_kind_is_not_built_without_its_options() -> None:
    with pytest.raises(ValueError, match=r"adapter\.tokens is not given, the adapter 'resampler' is not built without"):
        adapters.build(AdapterConfig(kind="resampler", in_width=12, inner_width=10, out_width=10))


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [("linear", 787_200), ("resampler", 43_376_384), ("timestep_resampler", 66_037_760), ("refiner", 14_966_528)],
)
def test_the_sizes_between_t5_large_and_sd14(kind: str, parameters: int) -> None:
    """As training/README.md has them."""
    with torch.device("meta"):
        adapter = adapters.build(adapters.configure(kind, in_width=1024, out_width=768))
    assert sum(p.numel() for p in adapter.parameters()) == parameters


def test_rotary_positions_turn_pairs_of_channels() -> None:
    """And the states' places are heard, which a resampler's queries do not hear."""
    with pytest.raises(ValueError, match=r"adapter\.heads = 2 leaves 5 channels a head"):
        built("perceiver", inner=10, heads=2)
    hidden = said()
    turned = HiddenStates(hidden.states[1:].flip(1), hidden.mask[1:])
    for kind, heard in (("perceiver", True), ("resampler", False)):
        adapter = built(kind)
        change = adapter(turned).context - adapter(HiddenStates(hidden.states[1:], hidden.mask[1:])).context
        assert (change.abs().max() > 1e-3) == heard
