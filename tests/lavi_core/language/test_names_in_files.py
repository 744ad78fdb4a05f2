"""Files that hold a model under other names than its own: the fingerprint before loading, and streaming, are right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from lavi_bridge.lavi_core.bridge import check_language
from lavi_bridge.lavi_core.language import TextEncoder, conversions, loading
from lavi_bridge.lavi_core.prompt import PromptRecipe
from torch import nn

from ..conftest import write_tokenizer
from .tiny_families import tiny_folders

# Experts joined into one weight; qkv joined; layers renamed; tied by the class with the head alone; never saved.
KINDS = (
    "mixtral",
    "qwen3_moe",
    "deepseek_v3",
    "gpt_oss",
    "nomic_bert",
    "bart",
    "m2m_100",
    "longt5",
    "t5gemma",
    "marian",
    "udop",
)
MIXTURES = ("mixtral", "qwen3_moe")
RECIPE = PromptRecipe(max_length=20)
IDS = torch.arange(5, 15)[None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folders(tmp_path_factory)


@torch.no_grad()
def say(encoder: TextEncoder) -> torch.Tensor:
    return encoder(encoder.tokenize(["a red circle"], RECIPE), RECIPE).states


@pytest.mark.parametrize("kind", KINDS)
def test_a_skeleton_is_known_as_the_model_itself(kind, folder):
    loaded, bare = TextEncoder.load(folder(kind)).config, TextEncoder.skeleton(folder(kind)).config
    assert loaded.fingerprint is not None and bare.fingerprint == loaded.fingerprint
    assert bare.facts == loaded.facts  # the sizes of weights are among them
    check_language(loaded, bare)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "udop"])
def test_streamed_it_says_the_same(kind, folder):
    whole, streamed = TextEncoder.load(folder(kind)), TextEncoder.load(folder(kind), stream=True)
    assert streamed.config == whole.config
    assert torch.equal(say(streamed), say(whole))
    assert all(parameter.is_meta for parameter in streamed.parameters()) and [*streamed.parameters()]


@pytest.mark.parametrize("kind", MIXTURES)
def test_of_experts_only_those_are_read_that_the_print_samples(kind, folder, monkeypatch):
    read: list[slice | None] = []
    plain = conversions._read

    def counted(*args, rows=None):
        read.append(args[5] if len(args) > 5 else rows)
        return plain(*args) if rows is None else plain(*args, rows)

    monkeypatch.setattr(conversions, "_read", counted)
    monkeypatch.setattr(loading, "_from_pretrained", None)
    assert TextEncoder.skeleton(folder(kind)).config.fingerprint is not None
    assert read and all(rows is not None and rows.stop - rows.start == 1 for rows in read)


def test_another_copy_of_a_mixture_has_another_print(folder, tmp_path):
    """One value of one expert: what is compared is the experts' own numbers."""
    model = hf.MixtralModel.from_pretrained(folder("mixtral"))
    with torch.no_grad():
        weight = model.get_parameter("layers.1.mlp.experts.gate_up_proj")
        weight[2, 0, 0] = -weight[2, 0, 0]  # the middle, which is sampled
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    prints = [TextEncoder.skeleton(path).config.fingerprint for path in (folder("mixtral"), tmp_path)]
    assert None not in prints and prints[0] != prints[1]
    assert TextEncoder.load(tmp_path).config.fingerprint == prints[1]


@pytest.mark.parametrize("kind", ["marian", "bart"])
def test_an_encoder_says_what_transformers_says(kind, folder):
    """Marian's positions are in no file."""
    encoder = TextEncoder.load(folder(kind))
    with torch.no_grad():
        found = encoder.model(input_ids=IDS).last_hidden_state
        golden = hf.AutoModel.from_pretrained(folder(kind)).get_encoder().eval()
        assert torch.equal(found, golden(input_ids=IDS).last_hidden_state)


def test_marian_is_read_without_transformers_loading(folder, monkeypatch):
    monkeypatch.setattr(loading, "_from_pretrained", None)
    state = torch.get_rng_state()
    assert torch.isfinite(say(TextEncoder.load(folder("marian")))).all()
    assert torch.equal(torch.get_rng_state(), state)


def test_udop_has_the_bias_that_its_class_ties(folder):
    encoder = TextEncoder.load(folder("udop")).model
    bias = encoder.get_parameter("block.0.layer.0.SelfAttention.relative_attention_bias.weight")
    assert torch.equal(encoder.get_parameter("relative_bias.biases.0.relative_attention_bias.weight"), bias)
    golden: Any = hf.UdopForConditionalGeneration.from_pretrained(folder("udop"))
    assert torch.equal(bias, golden.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight)
    with pytest.raises(ValueError, match=r"does not run on token ids alone .*Bbox is required"):
        say(TextEncoder.load(folder("udop")))


@pytest.mark.parametrize("kind", ["rwkv"])
def test_what_cannot_be_streamed_is_said(kind, folder):
    """RWKV divides its weights by itself."""
    with pytest.raises(ValueError, match=r"computes itself with the weight of one .*, which is streamed.*; load"):
        say(TextEncoder.load(folder(kind), stream=True))


def test_buffers_that_are_saved_are_read_too(folder, tmp_path):
    """The bias of GLM's routers: with another, other experts are chosen."""
    model = hf.Glm4MoeModel.from_pretrained(folder("glm4_moe"))
    biases = [buffer for name, buffer in model.named_buffers() if name.endswith("e_score_correction_bias")]
    for number, bias in enumerate(biases):
        bias.copy_(torch.arange(bias.numel()).roll(number) * 10.0)
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    plain = say(TextEncoder.load(folder("glm4_moe"), stream=True))
    whole, streamed = (TextEncoder.load(tmp_path, stream=stream) for stream in (False, True))
    assert biases and torch.equal(say(streamed), say(whole)) and not torch.equal(plain, say(whole))


@pytest.mark.parametrize("kind", ["glm4_moe", "hy_v3", "flint"])
def test_what_a_class_keeps_in_float32_stays_so_in_half_precision(kind, folder):
    """By lists of names, "gate.weight" and "sinks" among them."""
    whole, streamed = (TextEncoder.load(folder(kind), dtype=torch.bfloat16, stream=stream) for stream in (False, True))
    golden = hf.AutoModel.from_pretrained(folder(kind), dtype=torch.bfloat16)
    dtypes = {name: weight.dtype for name, weight in golden.named_parameters()}
    assert {torch.bfloat16, torch.float32} == set(dtypes.values())
    for encoder in (whole, streamed):
        assert {name: weight.dtype for name, weight in encoder.model.named_parameters()} == dtypes
    assert torch.equal(say(streamed), say(whole))


@pytest.mark.parametrize("kind", ["mamba", "deberta", "llama4_text"])
def test_layers_that_read_the_weights_of_their_parts_are_streamed(kind, folder):
    """Mamba takes its convolution's weight, DeBERTa its table of distances, Llama 4 asks a weight for its device."""
    whole, streamed = (TextEncoder.load(folder(kind), stream=stream) for stream in (False, True))
    assert torch.equal(say(streamed), say(whole))


def test_a_pass_that_is_left_holds_no_weights(folder):
    streamed = TextEncoder.load(folder("mixtral"), stream=True)
    recipe = PromptRecipe(max_length=20, hidden_states=1)
    with torch.no_grad():
        found = streamed(streamed.tokenize(["a red circle"], recipe), recipe).states
        whole = TextEncoder.load(folder("mixtral"))
        assert torch.equal(found, whole(whole.tokenize(["a red circle"], recipe), recipe).states)
    assert all(parameter.is_meta for parameter in streamed.parameters())

    def stop(*_: Any) -> None:
        raise RuntimeError("stopped")

    inside = next(m for m in streamed.layers()[1].modules() if isinstance(m, nn.Linear))
    inside.register_forward_hook(stop)
    with pytest.raises(RuntimeError, match="stopped"):
        say(streamed)
    assert all(parameter.is_meta for parameter in streamed.parameters())


def test_blip_2_is_its_language_model_without_a_head(folder):
    encoder = TextEncoder.load(folder("blip-2"))
    golden = hf.Blip2ForConditionalGeneration.from_pretrained(folder("blip-2")).eval()
    assert type(encoder.model).__name__ == "OPTModel"
    with torch.no_grad():
        expected = golden.language_model.base_model(input_ids=IDS).last_hidden_state
        assert torch.equal(encoder.model(input_ids=IDS).last_hidden_state, expected)
    assert TextEncoder.skeleton(folder("blip-2")).config == encoder.config


def test_fsmt_has_an_encoder_without_a_config(folder):
    """Its last states are right; its layers have another order of dimensions."""
    encoder = TextEncoder.load(folder("fsmt"))
    golden = hf.FSMTForConditionalGeneration.from_pretrained(folder("fsmt")).eval().get_encoder()
    tokens = encoder.tokenize(["a red circle"], RECIPE)
    with torch.no_grad():
        expected = golden(tokens.ids, attention_mask=tokens.mask.long()).last_hidden_state
    assert torch.equal(say(encoder), expected)
