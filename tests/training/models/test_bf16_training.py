"""How a step computes: the adapter's products in training and in use, and attention on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from lavi_bridge.lavi_core.adapters import ADAPTERS
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.tests.training.paper import RECIPES
from lavi_bridge.training.models.attention import FEW_CELLS, attention_kernel
from lavi_bridge.training.models.pair import Pair
from lavi_bridge.training.models.vision_model import load_vision_model
from lavi_bridge.training.recipe import read_recipe

CAPTIONS = ["a red circle", "two blue squares beside it"]
KINDS = ["linear", "mlp", "projection", "refiner", "compressor", "resampler", "perceiver", "timestep_resampler"]
ASKING = ["token_queries", "seeded_resampler"]
T5 = Path(__file__).parents[2] / "golden" / "t5_unet" / "tokenizer"
SMALL = {"depth": 1, "tokens": 8}


@pytest.mark.parametrize("kind", [*KINDS, *ASKING])
def test_an_adapter_trained_in_bf16_says_nearly_what_it_says_in_use(kind: str, paper: Path) -> None:
    changes = ["precision=bf16", "prompt.max_length=16", f"adapter.kind={kind}"]
    changes += [f"adapter.{key}={value}" for key, value in SMALL.items() if key in ADAPTERS[kind].options]
    changes += ["adapter.dropout=0"] if kind in ("mlp", "projection") else []
    changes += [f"adapter.query_tokenizer={T5}"] if kind in ASKING else []
    recipe = read_recipe(RECIPES / "t5-large-sd14.toml", changes)
    encoder = TextEncoder.load(paper / "models" / "t5-large", dtype=torch.bfloat16)
    vision = load_vision_model(paper / "models" / "stable-diffusion-v1-4", dtype=torch.bfloat16)
    torch.manual_seed(0)
    pair = Pair(recipe, encoder, vision)
    t = torch.tensor([10, 900])
    with torch.no_grad():
        hidden = pair.states(pair.tokenize(CAPTIONS))
    said = pair.eval().alone(hidden, t).context
    assert said.dtype == torch.float32

    pair.train()
    heard = pair.alone(hidden, t)
    mask = torch.ones(heard.context.shape[:2], dtype=torch.bool) if heard.mask is None else heard.mask
    off = (heard.context.float() - said)[mask].abs().max()
    assert 0 < off < 0.05 * said[mask].abs().max()  # in 8 bits, and not of another adapter
    pair.predict(torch.randn(2, 4, 4, 4), t, heard).float().square().mean().backward()
    gradients = [p.grad for p in pair.adapter.parameters() if p.grad is not None]
    assert gradients and all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients)


def test_the_processors_of_attention_are_lent(paper: Path) -> None:
    """Pictures of training's are small, those of a user who takes the network further may be large."""
    network = load_vision_model(paper / "models" / "stable-diffusion-v1-4").network

    def kinds() -> set[type]:
        return {type(module.processor) for module in network.modules() if isinstance(module, Attention)}

    assert kinds() == {AttnProcessor2_0}
    with pytest.raises(KeyError), attention_kernel(network, torch.device("cpu"), FEW_CELLS):
        assert kinds() == {AttnProcessor}
        raise KeyError
    assert kinds() == {AttnProcessor2_0}
    with attention_kernel(network, torch.device("cpu"), FEW_CELLS + 1):
        assert kinds() == {AttnProcessor2_0}
    with attention_kernel(network, torch.device("meta"), 1):
        assert kinds() == {AttnProcessor2_0}
