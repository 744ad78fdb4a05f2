"""The adapters: the paper's to the last key, the ablations, and the pooled head."""

from __future__ import annotations

import pytest
import torch
from lavi_bridge.lavi_core import adapters
from lavi_bridge.lavi_core.conditioning import HiddenStates
from lavi_bridge.lavi_core.config import AdapterConfig

RELEASED = {  # arXiv 2403.07860's three bridges: (in, inner, out) and the adapters' parameters
    (1024, 896, 768): 21_254_528,
    (4096, 2432, 768): 228_920_192,
    (1024, 2560, 4096): 113_288_704,
}


def config(kind="mlp", widths=(8, 6, 4), pooled=None):
    return AdapterConfig(kind=kind, in_width=widths[0], inner_width=widths[1], out_width=widths[2], pooled_width=pooled)


def hidden(width=8):
    torch.manual_seed(0)
    mask = torch.tensor([[True, True, True, False, False], [True] * 5])
    return HiddenStates(torch.randn(2, 5, width), mask)


@pytest.mark.parametrize("widths", RELEASED)
def test_the_released_sizes(widths):
    with torch.device("meta"):
        adapter = adapters.build(config(widths=widths))
    assert sum(p.numel() for p in adapter.parameters()) == RELEASED[widths]
    assert adapters.inner_width(widths[0], widths[2]) == widths[1]
    shapes = {k: tuple(v.shape) for k, v in adapter.state_dict().items()}
    d, m, o = widths
    assert shapes == {
        "norm1.weight": (d,),
        "norm1.bias": (d,),
        "ff1.net.0.proj.weight": (8 * d, d),
        "ff1.net.0.proj.bias": (8 * d,),
        "ff1.net.2.weight": (m, 4 * d),
        "ff1.net.2.bias": (m,),
        "norm2.weight": (m,),
        "norm2.bias": (m,),
        "ff2.net.0.proj.weight": (8 * m, m),
        "ff2.net.0.proj.bias": (8 * m,),
        "ff2.net.2.weight": (o, 4 * m),
        "ff2.net.2.bias": (o,),
    }


def test_the_first_half_is_the_value_the_second_the_gate():
    from diffusers.models.attention import FeedForward

    ours = adapters.MLPAdapter(config()).eval()
    theirs = FeedForward(8, dim_out=6, mult=4, dropout=0.1, activation_fn="geglu").eval()
    theirs.load_state_dict(ours.ff1.state_dict())
    x = torch.randn(3, 8)
    torch.testing.assert_close(ours.ff1(x), theirs(x))


def test_dropout_is_active_in_training_alone():
    adapter, said = adapters.build(config(widths=(8, 64, 4))), hidden()
    assert not torch.equal(adapter(said).context, adapter(said).context)
    adapter.eval()
    assert torch.equal(adapter(said).context, adapter(said).context)


@pytest.mark.parametrize("kind", ["mlp", "linear", "projection", "identity"])
def test_every_kind(kind):
    widths = (8, 8, 8) if kind == "identity" else (8, 6, 4)
    adapter = adapters.build(config(kind, widths)).eval()
    heard = adapter(hidden())
    assert heard.context.shape == (2, 5, widths[2])
    assert torch.equal(heard.mask, hidden().mask) and heard.pooled is None
    if kind == "identity":
        assert torch.equal(heard.context, hidden().states) and not list(adapter.parameters())
    else:  # per token: nothing is mixed along the prompt
        one = adapter(HiddenStates(hidden().states[:, 2:3], hidden().mask[:, 2:3])).context
        torch.testing.assert_close(one, heard.context[:, 2:3])


@pytest.mark.parametrize("kind", ["mlp", "linear", "identity"])
def test_the_pooled_head_does_not_hear_padding(kind):
    widths = (8, 8, 8)
    adapter, said = adapters.build(config(kind, widths, pooled=10)).eval(), hidden()
    pooled = adapter(said).pooled
    assert pooled.shape == (2, 10)
    loud = HiddenStates(said.states.masked_fill(~said.mask.unsqueeze(-1), 1e4), said.mask)
    torch.testing.assert_close(adapter(loud).pooled, pooled)
    short = HiddenStates(said.states[:1, :3], said.mask[:1, :3])
    torch.testing.assert_close(adapter(short).pooled, pooled[:1])


def test_refusals():
    with pytest.raises(ValueError, match="unknown adapter 'x'; known: mlp, linear, identity, resampler"):
        adapters.build(config("x"))
    with pytest.raises(ValueError, match="the language model gives 8 and the vision model takes 4"):
        adapters.build(config("identity"))
