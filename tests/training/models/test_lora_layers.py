"""LoRA as it is trained computes what peft's layers compute: outputs, gradients, dropout; its sites share work."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lavi_bridge.lavi_core.conditioning import Conditioning
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.tests.training.paper import RECIPES
from lavi_bridge.training.models.dropout import drop_out
from lavi_bridge.training.models.layers import channels_last
from lavi_bridge.training.models.lora_layers import Group, LoRALayer, copied, inject
from lavi_bridge.training.models.vision_model import load_vision_model
from lavi_bridge.training.recipe import read_recipe
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

RANK, ALPHA = 3, 4.5


class Attention(nn.Module):
    """Three projections of one tensor, and one of another."""

    def __init__(self, keys: int = 6):
        super().__init__()
        self.q_proj, self.o_proj = nn.Linear(6, 6), nn.Linear(6, 6)
        self.k_proj, self.v_proj = nn.Linear(6, keys, bias=False), nn.Linear(6, keys)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return self.o_proj(q) * (k.sum(-1, keepdim=True) + v.square().sum(-1, keepdim=True))


class Crossed(Attention):
    """Its keys and values are of another tensor than its queries, which no name tells."""

    def forward(self, x: Tensor) -> Tensor:
        heard = x.sin()
        return self.o_proj(self.q_proj(x) * self.k_proj(heard) + self.v_proj(heard))


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, stride=2, padding=1)
        self.short = nn.Conv2d(6, 6, 1, bias=False)
        self.transposed = Conv1D(6, 6)
        self.again = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.transpose(1, 2).unflatten(-1, (2, -1))
        y = self.transposed(self.short(self.conv(pixels)).flatten(2).transpose(1, 2))
        return self.again(self.again(y).tanh())  # one map, two calls


def sites(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d | Conv1D)]


def both(model: nn.Module, dropout: float = 0.0) -> tuple[nn.Module, nn.Module]:
    """(ours, peft's), with the same random weights."""
    torch.manual_seed(0)
    ours, theirs, paths = copy.deepcopy(model), copy.deepcopy(model), sites(model)
    for one in (ours, theirs):
        one.requires_grad_(False)
    inject(ours, paths, RANK, ALPHA, dropout)
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=dropout, target_modules=paths), theirs)  # type: ignore[arg-type]
    found, wanted = trained(ours), trained(theirs)
    assert found.keys() == wanted.keys()
    for key, weight in found.items():
        nn.init.normal_(weight, std=0.3)
        wanted[key].data.copy_(weight)
    return ours, theirs


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {key: p for key, p in model.named_parameters() if p.requires_grad}


def gap(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("made_once", [True, False])
@pytest.mark.parametrize("make", [Attention, lambda: Attention(keys=2), Crossed, Blocks])
def test_outputs_and_gradients_are_pefts(make: Callable[[], nn.Module], made_once: bool) -> None:
    torch.manual_seed(0)
    ours, theirs = both(make())
    inputs = [torch.randn(2, 8, 6, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2)]
    wanted = theirs(inputs[1])
    if made_once:
        with copied(ours):
            found = ours(inputs[0])
    else:
        found = ours(inputs[0])
    for output in (found, wanted):
        output.square().mean().backward()
    assert gap(found, wanted) < 1e-6
    assert inputs[0].grad is not None and inputs[1].grad is not None
    assert gap(inputs[0].grad, inputs[1].grad) < 1e-6
    expected = trained(theirs)
    for key, p in trained(ours).items():
        reference = expected[key].grad
        assert p.grad is not None and reference is not None and p.grad.dtype == torch.float32
        assert gap(p.grad, reference) < 1e-6, key


@pytest.mark.parametrize("last", [False, True], ids=["", "channels-last"])
@pytest.mark.parametrize("vision", ["stable-diffusion-v1-4", "PixArt-XL-2-512x512"])
def test_a_whole_network_has_pefts_gradients(vision: str, last: bool, paper: Path) -> None:
    torch.manual_seed(0)
    networks = [load_vision_model(paper / "models" / vision, dtype=torch.float64) for _ in range(2)]
    ours, theirs = networks
    paths = ours.row.sites(ours.network)
    inject(ours.network, paths, RANK, ALPHA, 0.0)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=paths)  # type: ignore[arg-type]
    inject_adapter_in_model(config, theirs.network)
    if last:
        channels_last(ours.network)
    expected = trained(theirs.network)
    for key, p in trained(ours.network).items():
        p.data = nn.init.normal_(p.data.double(), std=0.1)
        expected[key].data = p.data.clone()
    x, t = torch.randn(2, 4, 4, 4, dtype=torch.float64), torch.tensor([10, 900])
    mask = torch.ones(2, 7, dtype=torch.bool)
    heard = torch.randn(2, 7, ours.context_width, dtype=torch.float64)
    for one in networks:
        with copied(one.network):
            one.predict(x, t, Conditioning(heard, mask)).square().mean().backward()
    for key, p in trained(ours.network).items():
        wanted = expected[key].grad
        assert p.grad is not None and wanted is not None
        assert (p.grad - wanted).abs().max() < 1e-6 * wanted.abs().max() + 1e-15, key  # a group norm takes some to 0


def test_in_bf16_nothing_is_cast_and_the_gradients_are_float32s() -> None:
    ours, theirs = both(Attention())
    for one in ours.modules():
        if isinstance(one, LoRALayer):
            one.base_layer.bfloat16()
    x = torch.randn(2, 8, 6)
    with copied(ours):
        output = ours(x.bfloat16())
    output.float().square().mean().backward()
    theirs(x).square().mean().backward()
    assert output.dtype == torch.bfloat16
    expected = trained(theirs)
    for key, p in trained(ours).items():
        assert p.grad is not None and p.grad.dtype == torch.float32
        assert gap(p.grad, expected[key].grad) < 0.05, key  # type: ignore[arg-type]


def test_dropout_is_pefts_in_distribution() -> None:
    """Each site drops by itself: means and covariances of what q, k and v say are peft's, over many draws."""
    p, draws = 0.25, 4000
    ours, theirs = both(Attention(), p)
    x = torch.randn(1, 1, 6, generator=torch.Generator().manual_seed(1)).expand(draws, 1, 6)
    said = []
    for model in (ours.train(), theirs.train()):
        said.append(torch.cat([model.get_submodule(name)(x)[:, 0] for name in ("q_proj", "k_proj", "v_proj")], -1))
    plain = torch.cat([ours.eval().get_submodule(name)(x[:1])[:, 0] for name in ("q_proj", "k_proj", "v_proj")], -1)
    means, covariances = [s.mean(0) for s in said], [torch.cov(s.T) for s in said]
    spread = covariances[1].diagonal().sqrt()
    assert ((means[0] - plain[0]).abs() < 5 * spread / draws**0.5).all()
    noise = 6 * spread[:, None] * spread[None] / draws**0.5
    assert ((covariances[0] - covariances[1]).abs() < noise).all()
    between = covariances[0][:6, 6:12].abs() / (spread[:6, None] * spread[None, 6:12])
    assert between.max() < 0.1  # q and k drop independently


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5])
def test_what_drops_out(p: float) -> None:
    """Each element by itself with probability p, whatever the layout; what is left keeps the mean."""
    for x in (torch.ones(400, 1001), torch.ones(4, 250, 401, 1).to(memory_format=torch.channels_last)):
        torch.manual_seed(0)
        dropped, mask = drop_out(x, p)
        assert mask is not None and mask.unique().tolist() == [0, 1] and mask.stride() == dropped.stride() == x.stride()
        assert torch.equal(dropped, mask / (1 - p))
        kept = mask.float().flatten()
        assert abs(float(kept.mean()) - (1 - p)) < 5 * (p * (1 - p) / len(kept)) ** 0.5
        for apart in range(1, 9):  # several are made of one number
            together = (kept[:-apart] * kept[apart:]).mean() - (1 - p) ** 2
            assert abs(float(together)) < 5 * (2 * p / len(kept)) ** 0.5


@pytest.mark.parametrize("last", [False, True], ids=["", "channels-last"])
def test_dropout_that_was_drawn_is_in_the_gradients(last: bool) -> None:
    """To what was drawn the function is linear in x and in each weight, so products say whether gradients are right."""
    for model in (Attention(), Blocks()):
        ours = both(model, 0.5)[0].train().double()
        if last:
            channels_last(ours)
        x = torch.randn(2, 8, 6, dtype=torch.float64, requires_grad=True)

        def said(moved: Tensor, ours: nn.Module = ours) -> Tensor:
            torch.manual_seed(3)
            with copied(ours):
                return ours(moved).sin().sum()

        (found,) = torch.autograd.grad(said(x), x)
        way = torch.randn_like(x)
        with torch.no_grad():
            wanted = (said(x + 1e-6 * way) - said(x - 1e-6 * way)) / 2e-6
        assert float((found * way).sum()) == pytest.approx(float(wanted), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_group_norms_leave_pictures_as_they_lay_and_get_narrow_ones_channels_first(dtype: torch.dtype) -> None:
    given: list[Tensor] = []

    class Norm(nn.GroupNorm):
        def forward(self, input: Tensor) -> Tensor:
            given.append(input)
            return super().forward(input)

    torch.manual_seed(0)
    norm, plain = nn.Sequential(Norm(4, 8)).to(dtype), nn.GroupNorm(4, 8).to(dtype)
    channels_last(norm)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 8, 5, 5, dtype=dtype).to(memory_format=layout).requires_grad_()
        said, wanted = norm(x), plain(x.detach().contiguous().requires_grad_())
        assert said.is_contiguous(memory_format=layout) and torch.allclose(said, wanted, rtol=1e-2, atol=1e-5)
        assert given.pop().is_contiguous() == (dtype == torch.bfloat16 or layout == torch.contiguous_format)
        said.square().sum().backward()
        assert x.grad is not None and x.grad.isfinite().all()
    assert not given and norm(torch.ones(1, 8, 7, dtype=dtype)).shape == (1, 8, 7)  # of no picture


def groups(model: nn.Module) -> list[list[LoRALayer]]:
    found: dict[int, Group] = {id(m.group): m.group for m in model.modules() if isinstance(m, LoRALayer)}
    return [group.layers for group in found.values()]


def test_which_sites_share_work(paper: Path) -> None:
    model = load_vision_model(paper / "models" / "stable-diffusion-v1-4")
    paths = model.row.sites(model.network)
    inject(model.network, paths, RANK, ALPHA, 0.0)
    names = {id(m): name for name, m in model.network.named_modules()}
    together = [[names[id(layer)] for layer in group] for group in groups(model.network) if len(group) > 1]
    selves, crosses = (sum(f".attn{i}.to_q" in path for path in paths) for i in (1, 2))
    assert sorted(map(len, together)) == [2] * crosses + [3] * selves
    encoder = TextEncoder.load(paper / "models" / "t5-large")
    inject(encoder.model, encoder.lora_sites(), RANK, ALPHA, 0.0)
    assert sorted(map(len, groups(encoder.model))) == [1, 1, 3, 3]  # q k v, and o, of two layers


def test_nothing_is_kept_of_a_pass() -> None:
    """Of sites that were not all asked, or asked with other tensors, nothing outlives the pass."""
    ours = both(Crossed())[0]
    with copied(ours):
        ours(torch.randn(1, 2, 6))
    assert all(
        layer.group.held_for is None and layer.group.operands is None
        for layer in ours.modules()
        if isinstance(layer, LoRALayer)
    )


def test_a_start_is_the_authors() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, 512))
    frozen: nn.Module = model.get_submodule("0")
    inject(model, ["0"], 64, 64.0, 0.0)
    layer: Any = model.get_submodule("0")
    assert isinstance(layer, LoRALayer) and layer.base_layer is frozen
    down, up = layer.down.detach(), layer.up.detach()
    assert float(torch.std(down)) == pytest.approx(1 / 64, rel=0.02) and not torch.count_nonzero(up)
    x = torch.randn(3, 512)
    assert torch.equal(layer(x), frozen(x))


def test_the_recipes_rank_alpha_and_dropout_arrive() -> None:
    section = read_recipe(RECIPES / "t5-large-sd14.toml").vision
    model = nn.Sequential(nn.Linear(6, 6))
    inject(model, ["0"], section.rank, section.alpha, section.dropout)
    assert repr(model[0]).startswith("LoRALayer(\n  rank=32, scale=1, dropout=0.1")
