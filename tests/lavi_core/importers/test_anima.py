"""Anima's llm_adapter wherever it lies in a file, its second tokenizer, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lavi_bridge.lavi_core import adapters
from lavi_bridge.lavi_core.bridge import Bridge
from lavi_bridge.lavi_core.checkpoint import QUERY_TOKENIZER, BridgeCheckpoint, read_config
from lavi_bridge.lavi_core.conditioning import HiddenStates
from lavi_bridge.lavi_core.importers import dialect_of, presets, read_any, read_foreign, read_foreign_config
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.tests.lavi_core.importers.test_peers import vision
from lavi_bridge.tests.lavi_core.language.qwen3 import write_qwen3
from safetensors import safe_open
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).parents[2] / "golden"
FILE = GOLDEN / "connectors" / "anima" / "adapter.safetensors"
T5, T5_MODEL = (GOLDEN / "t5_unet" / part for part in ("tokenizer", "text_encoder"))
PROMPTS = ["a red circle left of a blue square", "", "two lines\nof a poem"]


def written(folder: Path, prefix: str = "", **changes: torch.Tensor | None) -> Path:
    """A copy with the prefix before its names, tensors put in, or left out where they are None; ``__`` is a dot."""
    state = load_file(FILE) | {name.replace("__", "."): tensor for name, tensor in changes.items()}
    file = folder / "anima.safetensors"
    save_file({f"{prefix}{name}": tensor for name, tensor in state.items() if tensor is not None}, file)
    return file


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    """A Qwen3 of the golden width."""
    return TextEncoder.load(write_qwen3(tmp_path_factory.mktemp("qwen3")), dtype=torch.float32)


@pytest.mark.parametrize("prefix", ["", "llm_adapter.", "net.llm_adapter.", "model.diffusion_model.llm_adapter."])
def test_it_is_found_beside_its_vision_model(prefix: str, tmp_path: Path) -> None:
    file = written(tmp_path, prefix)
    if prefix:
        outside = f"{prefix.removesuffix('llm_adapter.')}blocks.0.cross_attn.k_proj.weight"
        save_file(load_file(file) | {outside: torch.zeros(3, 3)}, file)
    assert dialect_of(file) == "anima" and presets(file) == ("anima",)
    found, plain = read_foreign(file, query_tokenizer=T5), read_foreign(FILE, query_tokenizer=T5 / "tokenizer.json")
    assert found.config.adapter == plain.config.adapter and found.query_tokenizer == plain.query_tokenizer
    assert found.adapter.keys() == plain.adapter.keys()
    assert all(torch.equal(found.adapter[name], plain.adapter[name]) for name in plain.adapter)
    config = read_foreign_config(file)
    assert config == found.config and (config.vision.target, config.vision.context_width) == ("cosmos", 32)
    assert config.adapter.heads == 4 and config.prompt.vision_mask and config.prompt.padding == "longest"


@torch.no_grad()
def test_from_prompts_to_context_and_in_one_file(encoder: TextEncoder, tmp_path: Path) -> None:
    import transformers

    file = tmp_path / "bridge.safetensors"
    read_foreign(FILE, encoder=encoder, query_tokenizer=T5).save(file)
    assert read_config(file).adapter.vocabulary == 400
    bridge = Bridge.connect(BridgeCheckpoint.load(file), encoder)
    tokenizer, core = transformers.AutoTokenizer.from_pretrained(T5), bridge.adapter
    heard = bridge(PROMPTS)
    assert heard.mask is not None
    for i, prompt in enumerate(PROMPTS):
        alone, ids = bridge([prompt]), torch.tensor([tokenizer(prompt).input_ids])
        assert alone.mask is not None and bool(alone.mask.all())  # nothing is filled up
        tokens = encoder.tokenize([prompt], bridge.config.prompt)
        states, mask, _ = encoder(tokens, bridge.config.prompt)
        torch.testing.assert_close(alone.context, core(HiddenStates(states, mask, ids)).context, rtol=0, atol=1e-5)
        assert int(heard.mask[i].sum()) == ids.shape[1]
        torch.testing.assert_close(heard.context[i, heard.mask[i]], alone.context[0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_at_a_strength_the_empty_prompt_stands_for_nothing(encoder: TextEncoder) -> None:
    bridge = Bridge.connect(read_foreign(FILE, encoder=encoder, query_tokenizer=T5), encoder)
    whole, empty = bridge(PROMPTS[:1]).context, bridge([""]).context
    none, half = (bridge.heard(PROMPTS[:1], strength=strength) for strength in (0.0, 0.5))
    for found in (none, half):
        assert not hasattr(found, "at")
    torch.testing.assert_close(none.context[:, :1], empty, rtol=1e-4, atol=1e-5)
    assert none.context.shape == whole.shape and not none.context[:, 1:].any()
    torch.testing.assert_close(half.context, (whole + none.context) / 2, rtol=1e-4, atol=1e-5)


def test_the_file_holds_the_tokenizer_and_is_refused_without(encoder: TextEncoder, tmp_path: Path) -> None:
    file = tmp_path / "bridge.safetensors"
    made = read_foreign(FILE, encoder=encoder, query_tokenizer=T5)
    made.save(file, torch.float16)
    assert BridgeCheckpoint.load(file).query_tokenizer == (T5 / "tokenizer.json").read_text()
    with safe_open(str(file), "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    tokenizer = tensors.pop(QUERY_TOKENIZER)
    save_file(tensors, file, metadata)
    with pytest.raises(ValueError, match="lacks the tokenizer of its adapter's queries; fetch or save it again"):
        BridgeCheckpoint.load(file)
    with pytest.raises(ValueError, match="lacks the tokenizer of its adapter's queries"):
        replace(made, query_tokenizer=None).save(file)
    save_file(tensors | {QUERY_TOKENIZER: tokenizer[:-9].contiguous()}, file, metadata)
    with pytest.raises(ValueError, match="the tokenizer of the queries in the bridge is not readable"):
        Bridge.connect(BridgeCheckpoint.load(file), encoder)
    plain = adapters.configure("linear", in_width=24, out_width=32)
    other = replace(made, config=replace(made.config, adapter=plain), adapter=adapters.build(plain).state_dict())
    with pytest.raises(ValueError, match="has 1 tensors that its config does not explain, first query_tokenizer"):
        other.save(file)


def test_refusals(encoder: TextEncoder, tmp_path: Path) -> None:
    def refused(file: Path, says: str, **more: object) -> None:
        with pytest.raises(ValueError, match=says) as told:
            read_foreign(file, **{"query_tokenizer": T5, **more})  # type: ignore[arg-type]
        assert "\n" not in str(told.value)

    refused(FILE, r"Anima's llm_adapter, which asks with the ids of a second tokenizer, T5's,", query_tokenizer=None)
    refused(FILE, r"there is no .+nowhere, the tokenizer of the queries", query_tokenizer=tmp_path / "nowhere")
    refused(GOLDEN / "connectors" / "ella" / "adapter.safetensors", "an ELLA connector, which asks with no second")
    assert read_any(GOLDEN / "connectors" / "ella" / "adapter.safetensors", query_tokenizer=T5).query_tokenizer is None
    refused(written(tmp_path, "net.llm_adapter.", norm__weight=None), r"lacks the tensor norm\.weight; fetch it again")
    refused(written(tmp_path, odd=torch.zeros(1)), r"1 of its tensors have no place in one, first odd")
    refused(written(tmp_path, embed__weight=torch.zeros(9, 32)), r"has 400 ids, the adapter knows 9: it is another's")
    refused(written(tmp_path, "llm_adapter.", norm__weight=torch.zeros(3)), r"norm\.weight of .+ has shape \[3\]")
    refused(
        FILE,
        r"a language model of width 24 \(Qwen/Qwen3-0\.6B-Base\), .+ has 32",
        encoder=TextEncoder.skeleton(T5_MODEL),
    )
    refused(FILE, r"a vision model of context width 32 \(Anima\), tiny cosmos has 33", vision=vision(33, "cosmos"))
    file = written(tmp_path, "llm_adapter.")
    save_file(load_file(file) | {"anima_v2_connector.semantic_resampler.x": torch.zeros(1)}, file)
    refused(file, r"Anima's connector for a second encoder \(anima_v2_connector\)")
    data = json.loads((T5 / "tokenizer.json").read_text())
    (tmp_path / "bare.json").write_text(json.dumps(data | {"post_processor": None}))
    refused(FILE, "gives the empty prompt no token, so that it asks nothing", query_tokenizer=tmp_path / "bare.json")
