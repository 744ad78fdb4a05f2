"""Weights that stay quantised say what the dequantised ones say, to the bit, in every family and dtype."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from lavi_bridge.lavi_core import lora
from lavi_bridge.lavi_core.config import LanguageConfig
from lavi_bridge.lavi_core.language import TextEncoder, loading
from lavi_bridge.lavi_core.language import gguf_file as file
from lavi_bridge.lavi_core.language.facts import differing
from lavi_bridge.lavi_core.language.gguf_file import gguf_config
from lavi_bridge.lavi_core.language.weight_loading import Slots
from lavi_bridge.lavi_core.lora import Delta, is_site
from lavi_bridge.lavi_core.prompt import PromptRecipe
from lavi_bridge.lavi_core.quantized.formats import FORMATS
from lavi_bridge.lavi_core.quantized.modules import Quantized, quantized
from lavi_bridge.lavi_core.quantized.storage import STORAGES
from lavi_bridge.lavi_core.quantized.unpacking import packed
from lavi_bridge.tests.lavi_core.language.gguf_files import write_llama, write_t5
from torch import nn

PROMPTS = ["a red circle left of a blue square", "sea"]
RECIPE = PromptRecipe(max_length=20)
KINDS = ("F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")


def say(encoder, recipe=RECIPE):
    return encoder(encoder.tokenize(PROMPTS, recipe), recipe).states


@pytest.fixture(scope="module")
def gguf_file(language_folder, tmp_path_factory):
    made = {}

    def make(kind):
        if kind not in made:
            made[kind] = write_llama(tmp_path_factory.mktemp("gguf") / f"{kind}.gguf", language_folder("llama"), kind)
        return made[kind]

    return make


def is_copy(ours: LanguageConfig, theirs: LanguageConfig) -> bool:
    """Alike to the fingerprint, and in the facts beside it as far as a quantised copy keeps them."""
    return replace(ours, facts=None) == replace(theirs, facts=None) and differing(ours.facts, theirs.facts) is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_gguf_file_is_heard_as_transformers_dequantises_it(gguf_file, kind):
    import transformers

    path = gguf_file(kind)
    for dtype in (torch.bfloat16, torch.float32):
        theirs = transformers.AutoModel.from_pretrained(path.parent, gguf_file=path.name, torch_dtype=dtype).eval()
        kept, dense = (TextEncoder.load(path, dtype=dtype, weights=how) for how in ("stored", "dense"))
        assert len(list(quantized(kept.model))) == (0 if kind == "F16" else 22) and not list(quantized(dense.model))
        assert kept.dtype == dense.dtype == dtype and is_copy(kept.config, dense.config)
        for name, parameter in theirs.named_parameters():
            assert torch.equal(dense.model.get_parameter(name), parameter), name
        tokens = kept.tokenize(PROMPTS, RECIPE)
        with torch.no_grad():
            expected = theirs(tokens.ids, attention_mask=tokens.mask.long()).last_hidden_state
        assert torch.equal(say(dense), expected) and torch.equal(say(kept), expected)


def test_a_gguf_file_of_t5_has_the_activation_of_its_version(tmp_path):
    """transformers takes T5 1.1 for one with ReLU; its own model, given the same numbers, is the golden side."""
    import transformers

    shape: dict[str, Any] = {"d_model": 64, "d_kv": 16, "num_heads": 4, "d_ff": 128, "num_layers": 2}
    golden = transformers.T5EncoderModel(
        transformers.T5Config(vocab_size=200, feed_forward_proj="gated-gelu", **shape)
    ).eval()
    path = write_t5(tmp_path / "t5.gguf", golden)
    source = loading.Source(path, gguf_config(path), None, None)
    kept, dense = (loading.load_trunk(source, torch.float32, weights=how) for how in ("stored", "dense"))
    assert len(list(quantized(kept))) == 2 * 7 + 2
    golden.load_state_dict(dense.state_dict())
    ids = torch.randint(0, 200, (2, 9))
    with torch.no_grad():
        expected = golden(ids).last_hidden_state
        assert torch.equal(dense(ids).last_hidden_state, expected)
        assert torch.equal(kept(ids).last_hidden_state, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_skeleton_has_the_fingerprint_without_reading_the_weights(gguf_file, kind, monkeypatch):
    path = gguf_file(kind)
    whole = TextEncoder.load(path).config
    monkeypatch.setattr(file, "_rows", lambda *_: pytest.fail("a tensor was read whole"))
    assert TextEncoder.skeleton(path).config == whole


def test_what_is_kept_is_the_file(gguf_file):
    encoder = TextEncoder.load(gguf_file("Q4_1"))
    held = sum(parameter.nbytes for parameter in encoder.parameters())
    matrices = encoder.config.vocab_size * 32 + 3 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 64)
    assert held == matrices * 5 // 8 + 7 * 32 * 4
    assert encoder.model.state_dict()["layers.0.self_attn.q_proj.weight"].dtype == torch.uint8
    assert encoder.to(torch.bfloat16).dtype == torch.bfloat16 and say(encoder).dtype == torch.bfloat16


@pytest.mark.parametrize("weights", ["8-bit", "4-bit"])
@pytest.mark.parametrize("kind", ["bert", "llama", "gemma", "gpt2", "t5", "clip"])
def test_a_folder_is_quantised_as_the_gguf_package_does(quantisable, weights, kind):
    import gguf

    folder = quantisable(kind)
    for dtype in (torch.float32, torch.float16):
        ours, golden = TextEncoder.load(folder, dtype=dtype, weights=weights), TextEncoder.load(folder, dtype=dtype)
        plain = TextEncoder.load(folder, dtype=torch.float32)
        assert is_copy(ours.config, golden.config)  # the fingerprint is that of the weights before
        found = dict(packed(ours.model))
        for path, part in found.items():
            read_so = isinstance(golden.model.get_submodule(path.removesuffix(".weight")), nn.Linear | nn.Embedding)
            values = (plain if read_so else golden).model.get_parameter(path).float().numpy()
            row = gguf.GGMLQuantizationType[part.format.name]
            values = gguf.quants.dequantize(gguf.quants.quantize(values, row), row)
            golden.model.get_parameter(path).copy_(torch.from_numpy(values))
        assert torch.equal(say(ours), say(golden)), dtype
        table = ours.model.get_input_embeddings()
        assert table.format.name == "Q8_0" and isinstance(table, Quantized)
        maps = {f"{p}.weight" for p, m in plain.model.named_modules() if is_site(m)}
        assert maps <= set(found) and all(found[p].format.name == STORAGES[weights].linear for p in maps)


@pytest.fixture(scope="module")
def quantisable(language_folder, tmp_path_factory):
    """Folders whose tables have more rows than a table of positions."""
    import transformers

    def make(kind):
        folder = tmp_path_factory.mktemp(kind) / kind
        if kind == "gemma":
            shape: dict[str, Any] = {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
            }
            shape |= {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 130}
            config = transformers.GemmaConfig(vocab_size=1200, pad_token_id=0, bos_token_id=1, eos_token_id=2, **shape)
            model = transformers.GemmaForCausalLM(config)
            source = language_folder("llama")
        else:
            source = language_folder(kind)
            config = transformers.AutoConfig.from_pretrained(source)
            config.vocab_size = 1200
            classes = {"clip": transformers.CLIPTextModel, "t5": transformers.T5EncoderModel}
            model = classes.get(kind, transformers.AutoModel)._from_config(config) if kind in classes else None
            model = model or transformers.AutoModel.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(source).save_pretrained(folder)
        return folder

    return make


def test_a_lora_stays_live_and_gradients_flow(gguf_file):
    kept, dense = (TextEncoder.load(gguf_file("Q8_0"), weights=how) for how in ("stored", "dense"))
    torch.manual_seed(0)
    deltas = {
        path: Delta(torch.randn(2, site.in_features) / 9, torch.randn(site.out_features, 2) / 9, 0.5)
        for path, site in ((path, dense.model.get_submodule(path)) for path in dense.lora_sites())
    }
    assert kept.lora_sites() == dense.lora_sites()
    before = say(kept)
    merged = lora.merge(kept.model, deltas, 0.7)
    lora.attach(dense.model, deltas, 0.7)
    assert torch.equal(say(kept), say(dense)) and not torch.equal(say(kept), before)
    merged.remove()
    assert torch.equal(say(kept), before) and not merged.active

    trained = {path: Delta(d.down.clone(), d.up.clone(), d.scale) for path, d in deltas.items()}
    for delta in trained.values():
        delta.down.requires_grad_()
    lora.attach(kept.model, trained, 0.7)
    held = []

    def pack(tensor):
        held.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = say(kept).square().mean()
    assert (64, 32) not in held and (32, 64) not in held  # no dequantised weight of an mlp waits for backward
    loss.backward()
    for path, delta in trained.items():
        down = deltas[path].down.requires_grad_()
        assert delta.down.grad is not None and down.grad is None
    say(dense).square().mean().backward()
    for path, delta in trained.items():
        torch.testing.assert_close(delta.down.grad, deltas[path].down.grad, rtol=1e-5, atol=1e-8)


def test_autocast_is_followed(gguf_file):
    kept, dense = (TextEncoder.load(gguf_file("Q8_0"), weights=how) for how in ("stored", "dense"))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert torch.equal(say(kept), say(dense))


def test_loading_tells_how_far_it_is_and_can_be_stopped(gguf_file, language_folder):
    for path in (gguf_file("Q8_0"), language_folder("bert")):
        told = []
        TextEncoder.load(path, progress=lambda done, total, told=told: told.append((done, total)))
        done = [d for d, _ in told]
        assert done == sorted(done) and len(set(done)) > 20 and told[-1][0] == told[-1][1] > 10_000
        assert len({total for _, total in told}) == 1

        def stop(done, total):
            if done > total // 2:
                raise InterruptedError

        with pytest.raises(InterruptedError):
            TextEncoder.load(path, progress=stop)


def test_a_format_that_is_not_read_is_named(gguf_file, language_folder, tmp_path, monkeypatch):
    import gguf

    path = tmp_path / "x.gguf"
    monkeypatch.setattr(
        gguf.quants, "quantize", lambda w, row: np.zeros((w.shape[0], w.shape[1] // 32 * 17), dtype=np.uint8)
    )
    write_llama(path, language_folder("llama"), "MXFP4")
    with pytest.raises(
        ValueError, match=r"x.gguf has weights in MXFP4 \(token_embd.weight\), .*; take a file in one of"
    ):
        TextEncoder.load(path)


def test_a_buffer_that_is_saved_is_left_to_transformers():
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    model.register_buffer("positions", torch.arange(3))
    model.register_buffer("made", torch.ones(1), persistent=False)
    assert Slots.are_all(model)
    model.register_buffer("scale", torch.ones(1))
    assert not Slots.are_all(model)


@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert", "t5", "clip", "bart", "llama", "qwen2", "gpt2"])
def test_folders_are_read_tensor_by_tensor(language_folder, kind, monkeypatch):
    """Without transformers' own reading, which nobody can follow or stop."""
    monkeypatch.setattr(loading, "_from_pretrained", None)
    assert torch.isfinite(say(TextEncoder.load(language_folder(kind)))).all()


def test_storages_are_a_table(language_folder):
    with pytest.raises(ValueError, match="unknown storage of weights '2-bit'; known: dense, stored, 8-bit, 4-bit"):
        TextEncoder.load(language_folder("bert"), weights="2-bit")
    with pytest.raises(ValueError, match="takes its weights as they are stored, not in 8-bit"):
        TextEncoder.load(language_folder("bert"), weights="8-bit", stream=True)
    assert all(not s.linear or s.linear in FORMATS for s in STORAGES.values())
