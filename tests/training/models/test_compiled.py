"""Each kind of layer is compiled once, whatever the depth, and other sizes do not compile it without end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lavi_bridge.training.models.layers import alike_layers
from lavi_bridge.training.models.lora_layers import copied, inject
from lavi_bridge.training.models.pair import KINDS
from torch import nn

DEPTH = 24  # T5-Large's
SITES = {
    "language": ("q", "k", "v", "o"),
    "vision": ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "time_emb_proj"),
}


def networks() -> tuple[nn.Module, nn.Module]:
    """T5-Large and Stable Diffusion 1.4's U-Net in their depths, narrow, with LoRA."""
    from diffusers import UNet2DConditionModel
    from transformers import T5Config, T5EncoderModel

    sizes: dict[str, Any] = {"d_model": 16, "d_ff": 16, "d_kv": 4, "num_heads": 4, "num_layers": DEPTH}
    torch.manual_seed(0)
    language = T5EncoderModel(T5Config(vocab_size=32, **sizes))
    vision = UNet2DConditionModel(
        block_out_channels=(8, 16, 32, 32), attention_head_dim=2, cross_attention_dim=16, norm_num_groups=4
    )
    for name, model in (("language", language), ("vision", vision)):
        model.requires_grad_(False).eval()
        paths = [path for path, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        inject(model, [path for path in paths if path.endswith(tuple(f".{s}" for s in SITES[name]))], 2, 2.0, 0.0)
    return language, vision


def step(language: Any, vision: Any, side: int, tokens: int) -> list[torch.Tensor]:
    """The loss and all gradients."""
    generator = torch.Generator().manual_seed(side + tokens)
    ids = torch.randint(0, 32, (2, tokens), generator=generator)
    x = torch.randn(2, 4, side, side, generator=generator)
    with copied(language, vision):
        states = language(input_ids=ids)[0]
        loss = vision(x, torch.tensor([3, 700]), states).sample.square().mean()
    loss.backward()
    weights = [p for model in (language, vision) for p in model.parameters() if p.requires_grad]
    found = [loss.detach(), *(p.grad for p in weights)]
    for p in weights:
        p.grad = None
    return found  # type: ignore[return-value]


def test_each_kind_of_layer_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._dynamo.testing

    language, vision = networks()
    layers = [*alike_layers(language), *alike_layers(vision)]
    assert (
        len(layers) == DEPTH - 1 + 15 + 14 + 2
    )  # all but T5's first; transformers, residual blocks, upsamplers with a twin
    sizes = [(16, 5), (16, 5), (16, 5), (24, 7), (32, 9), (40, 6)]
    wanted = [step(language, vision, *size) for size in sizes]
    torch._dynamo.reset()
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", KINDS)
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    for layer in layers:
        layer.compile(backend=counter)
    graphs = []
    for size, expected in zip(sizes, wanted, strict=True):
        for found, value in zip(step(language, vision, *size), expected, strict=True):
            assert (found - value).abs().max() <= 1e-4 * value.abs().max() + 1e-9
        graphs.append(counter.frame_count)
    torch._dynamo.reset()
    assert graphs[0] == graphs[2] <= 16
    assert graphs[3] <= 2 * graphs[0] and graphs[3] == graphs[-1], graphs  # once more, for any size
