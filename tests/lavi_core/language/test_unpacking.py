"""Weights that are no plain linear maps' stay quantised too: what they say is what the rounded dense ones say."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
import transformers as hf
from lavi_bridge.lavi_core import fingerprint, lora
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.lavi_core.lora import Delta
from lavi_bridge.lavi_core.prompt import PromptRecipe
from lavi_bridge.lavi_core.quantized.formats import FORMATS
from lavi_bridge.lavi_core.quantized.modules import put_blocks
from lavi_bridge.lavi_core.quantized.storage import STORAGES, quantize, requantize
from lavi_bridge.lavi_core.quantized.unpacking import Unpacking, packed
from torch import nn

from ..conftest import write_tokenizer
from .tiny_families import tiny_folders

# Experts; transposed maps; maps with a forward of their own, one of which gives a tuple.
KINDS = {
    "mixtral": "experts.gate_up_proj",
    "gpt_oss": "experts.down_proj",
    "llama4_text": "experts.down_proj",
    "gpt2": "c_attn.weight",
    "openai-gpt": "c_fc.weight",
    "falcon": "query_key_value.weight",
    "ibert": "query.weight",
}
RECIPE = PromptRecipe(max_length=20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folders(tmp_path_factory)


@torch.no_grad()
def say(encoder: TextEncoder) -> torch.Tensor:
    return encoder(encoder.tokenize(["a red circle"], RECIPE), RECIPE).states


@torch.no_grad()
def rounded(folder: Path, ours: TextEncoder) -> TextEncoder:
    """Dense, with the numbers that the blocks of ``ours`` stand for."""
    dense = TextEncoder.load(folder)
    for path, part in packed(ours.model):
        dense.model.get_parameter(path).copy_(part[:])
    return dense


@pytest.mark.parametrize("weights", ["8-bit", "4-bit"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_says_what_the_rounded_numbers_say(kind, weights, folder):
    plain, ours = TextEncoder.load(folder(kind)), TextEncoder.load(folder(kind), weights=weights)
    parts = dict(packed(ours.model))
    found = {path: part for path, part in parts.items() if path.endswith(KINDS[kind])}
    assert found and all(part.format.name == STORAGES[weights].linear for part in found.values())
    for path, part in found.items():  # as the gguf package rounds them
        values = plain.model.get_parameter(path).detach()
        blocks = quantize(values.reshape(-1, values.shape[-1]), part.format)
        assert part.shape == values.shape and torch.equal(part.blocks.flatten(), blocks.flatten())
    assert torch.equal(say(ours), say(rounded(folder(kind), ours)))
    assert not torch.equal(say(ours), say(plain))
    assert ours.config == plain.config  # the fingerprint is that of the weights before


def test_routers_and_convolutions_are_left_dense(folder):
    kept = {path.rpartition(".")[0] for path, _ in packed(TextEncoder.load(folder("mixtral"), weights="8-bit").model)}
    assert any("experts" in path for path in kept) and not any("gate" in path.split(".") for path in kept)
    llama = {path for path, _ in packed(TextEncoder.load(folder("llama4_text"), weights="8-bit").model)}
    assert any("experts" in path for path in llama) and not any("router" in path for path in llama)
    mamba = TextEncoder.load(folder("mamba"), weights="8-bit")
    assert not any("conv" in path or "A_log" in path for path, _ in packed(mamba.model))
    assert mamba.model.get_parameter("layers.0.mixer.conv1d.weight").is_floating_point()


def test_dense_numbers_are_there_while_a_module_runs_and_gone_afterwards(folder):
    encoder = TextEncoder.load(folder("mixtral"), weights="8-bit")
    experts = next(module for module in encoder.model.modules() if isinstance(module, Unpacking))
    seen: list[int] = []
    kept = experts.act_fn.register_forward_hook(lambda *_: seen.append(len(experts.unpacked)))
    say(encoder)
    kept.remove()
    assert seen and set(seen) == {2} and experts.unpacked == {}
    assert not any(p.is_floating_point() for p in experts.parameters())
    weight = experts.gate_up_proj
    assert torch.equal(weight, experts.dense("gate_up_proj"))  # who asks from outside gets a copy
    state = encoder.model.state_dict()
    assert state["layers.0.mlp.experts.gate_up_proj"].dtype == torch.uint8
    assert encoder.to(torch.bfloat16).model.layers[0].mlp.experts.down_proj.dtype == torch.bfloat16
    assert say(encoder).dtype == torch.bfloat16


def test_fingerprints_see_every_packed_weight(folder):
    """Of a model in memory, as a copy of what the blocks stand for."""
    ours = TextEncoder.load(folder("mixtral"), weights="8-bit")
    dense = rounded(folder("mixtral"), ours)
    assert fingerprint.magnitudes(ours.model) == fingerprint.magnitudes(dense.model)
    assert fingerprint.weights_fingerprint(ours.model) == fingerprint.weights_fingerprint(dense.model)


@pytest.mark.parametrize(("kind", "left"), [("gpt2", "Embedding"), ("mixtral", "Embedding, MixtralTopKRouter")])
def test_what_stays_as_it_is_is_said(kind, left, folder, caplog):
    with caplog.at_level(logging.WARNING):
        ours = TextEncoder.load(folder(kind), weights="8-bit")
    held = sum(torch.Size(part.shape).numel() for _, part in packed(ours.model))
    rest = sum(p.numel() for p in ours.model.parameters() if p.is_floating_point() and p.ndim > 1)
    (line,) = [r.getMessage() for r in caplog.records if "8-bit" in r.getMessage()]
    share = f"{100 * rest / (held + rest):.0f} %"
    assert line.startswith(f"{share} of the matrices of {ours.config.model_id} are not kept in 8-bit ({left}:")
    caplog.clear()
    TextEncoder.load(folder(kind))
    assert not caplog.records


def test_nothing_quantised_is_an_error(tmp_path):
    size = len(write_tokenizer(tmp_path))
    config = hf.BertConfig(
        vocab_size=size, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=40
    )
    hf.BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"^nothing of .* can be kept in 4-bit \(Embedding, Linear.*; load it as it is"
    ):
        TextEncoder.load(tmp_path, weights="4-bit")


def test_a_weight_that_a_class_computes_with_is_refused(folder):
    """RWKV divides the weights of some maps: of blocks it would read, and change, what is not there."""
    encoder = TextEncoder.load(folder("rwkv"), weights="8-bit")
    with pytest.raises(ValueError, match=r"computes itself with the weight of one of its maps, .* blocks; load"):
        say(encoder)


def test_a_stand_in_tells_what_it_is_and_nothing_more():
    linear = nn.Linear(32, 4, bias=False)
    row = FORMATS["Q8_0"]
    put_blocks(linear, quantize(linear.weight.detach(), row), row, torch.float16)
    weight = linear.weight
    assert (weight.dtype, weight.shape, weight.ndim) == (torch.float16, (4, 32), 2) and weight.device.type == "cpu"
    for use in (lambda: weight + 1, lambda: weight.div_(2), lambda: weight.data.mul_(2), lambda: weight.tolist()):
        with pytest.raises(ValueError, match="is kept as quantised blocks"):
            use()


@pytest.mark.parametrize("weights", ["stored", "8-bit"])
@pytest.mark.parametrize("kind", ["ibert", "falcon", "gpt2"])
def test_a_live_lora_beside_a_merged_one(kind, weights, folder):
    """I-BERT's maps give a tuple. What is kept in blocks takes no merge, so that there both are live."""
    generator = torch.Generator().manual_seed(0)
    encoder = TextEncoder.load(folder(kind), weights=weights)
    dense = TextEncoder.load(folder(kind)) if weights == "stored" else rounded(folder(kind), encoder)
    deltas = {}
    for path in encoder.lora_sites():
        down, up = lora.shapes(dense.model.get_submodule(path), 2)
        deltas[path] = Delta(torch.randn(down, generator=generator), torch.randn(up, generator=generator), 0.05)
    plain = say(encoder)
    lora.merge(dense.model, deltas)
    golden = say(dense)
    assert not torch.allclose(golden, plain, atol=1e-3)
    for put_in in (lora.attach, lora.merge):
        applied = put_in(encoder.model, deltas)
        assert torch.allclose(say(encoder), golden, atol=1e-4)
        applied.remove()
        assert torch.equal(say(encoder), plain)


def test_what_is_in_blocks_already_is_left(folder):
    encoder = TextEncoder.load(folder("mixtral"), weights="8-bit")
    before = {path: part.blocks for path, part in packed(encoder.model)}
    requantize(encoder.model, STORAGES["4-bit"])
    assert all(part.blocks is before[path] for path, part in packed(encoder.model) if path in before)
