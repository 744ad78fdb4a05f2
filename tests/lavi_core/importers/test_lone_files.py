"""Adapters that others publish as one file: their numbers, their text path, their names both ways, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lavi_bridge.lavi_core.bridge import Bridge
from lavi_bridge.lavi_core.checkpoint import BridgeCheckpoint
from lavi_bridge.lavi_core.conditioning import HiddenStates
from lavi_bridge.lavi_core.config import VisionConfig
from lavi_bridge.lavi_core.importers.distill_t5 import DISTILL_T5
from lavi_bridge.lavi_core.importers.lone_file import read_lone, to_lone
from lavi_bridge.lavi_core.importers.qwen_sdxl import QWEN_SDXL
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.lavi_core.lora import Delta
from lavi_bridge.tests.lavi_core.conftest import write_tokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor

GOLDEN = Path(__file__).parents[2] / "golden"
QWEN, T5 = GOLDEN / "connectors" / "qwen_sdxl", GOLDEN / "connectors" / "distill_t5"


def vision(width: int, target: str = "sdxl") -> VisionConfig:
    return VisionConfig(
        model_id=f"tiny {target}",
        target=target,
        context_width=width,
        objective="epsilon",
        latent_channels=4,
        latent_scale=0.13025,
        fingerprint=None,
    )


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3.5 of width 32, whose tokenizer puts nothing around a text; padding has states of its own."""
    import transformers
    from tokenizers.processors import TemplateProcessing

    folder = tmp_path_factory.mktemp("qwen35")
    tokenizer = write_tokenizer(folder)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A")
    tokenizer.save_pretrained(folder)
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    linear: dict[str, Any] = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    linear |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "full_attention_interval": 2}
    sizes: dict[str, Any] = heads | linear | {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4}
    torch.manual_seed(0)
    config = transformers.Qwen3_5TextConfig(**sizes, vocab_size=len(tokenizer), pad_token_id=0)
    model = transformers.Qwen3_5ForCausalLM(config)
    torch.nn.init.normal_(model.model.embed_tokens.weight)
    model.save_pretrained(folder)
    return folder


def read_qwen(folder: Path, file: Path = QWEN / "adapter.safetensors", **more: Any) -> BridgeCheckpoint:
    encoder = TextEncoder.skeleton(folder)
    given: dict[str, Any] = {"vision": vision(24), "pooled_width": 20, "heads": 4} | more
    return read_lone(QWEN_SDXL, file, encoder, prompt=QWEN_SDXL.prompt_of(encoder), provenance={}, **given)


def test_qwen_sdxls_numbers(qwen: Path) -> None:
    case, expected = json.loads((QWEN / "case.json").read_text()), load_file(QWEN / "expected.safetensors")
    made = read_qwen(qwen)
    config = made.config.adapter
    assert (config.tokens, config.depth, config.inner_width) == (case["queries"] - 1, case["depth"], case["width"])
    bridge = Bridge.connect(made, TextEncoder.load(qwen, dtype=torch.float32))
    with torch.no_grad():
        heard = bridge.adapt(HiddenStates(expected["hidden_states"], expected["mask"].bool()))
    assert heard.mask is None and heard.pooled is not None
    torch.testing.assert_close(heard.context, expected["context"], rtol=0, atol=1e-5)
    torch.testing.assert_close(heard.pooled, expected["pooled"], rtol=0, atol=1e-5)


def test_qwen_sdxls_text_path(qwen: Path) -> None:
    """As its scripts/inference.py calls Qwen; an empty prompt has no token that is not masked."""
    import transformers

    made, prompts = read_qwen(qwen), ["", "a red circle left of a blue square"]
    assert made.config.prompt.max_length == 256
    bridge = Bridge.connect(made, TextEncoder.load(qwen, dtype=torch.float32))
    model = transformers.AutoModelForCausalLM.from_pretrained(qwen, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(qwen)
    given = tokenizer(prompts, padding="max_length", truncation=True, max_length=256, return_tensors="pt")
    given = {name: given[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        states = model.model(**given).last_hidden_state
        theirs = bridge.adapt(HiddenStates(states, given["attention_mask"].bool()))
        ours = bridge(prompts)
        said = bridge(["a", prompts[1]])
    assert int(given["attention_mask"][0].sum()) == 0
    torch.testing.assert_close(ours.context, theirs.context, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.pooled, theirs.pooled, rtol=0, atol=1e-5)
    assert (said.context[0] - ours.context[0]).abs().max() > 1e-3


def test_distill_t5_from_ids_to_context(tmp_path: Path) -> None:
    """Its own folder is the language model of the bridge, its file the bridge."""
    case, expected = json.loads((T5 / "case.json").read_text()), load_file(T5 / "expected.safetensors")
    (tmp_path / "text_encoder").symlink_to(T5 / "text_encoder")
    (tmp_path / "tokenizer").symlink_to(GOLDEN / "t5_unet" / "tokenizer")
    encoder = TextEncoder.load(tmp_path / "text_encoder", dtype=torch.float32)
    prompt = DISTILL_T5.prompt_of(encoder)
    assert (prompt.max_length, prompt.language_mask, prompt.padding_side) == (512, False, "right")
    flux = vision(36, "flux")
    made = read_lone(
        DISTILL_T5, T5 / "text_encoder" / "model.safetensors", encoder, flux, 768, prompt, {"by": "a test"}
    )
    assert made.config.vision == replace(flux, other_pooled=768)
    assert made.config.provenance["imported"] == "DistillT5" and made.config.provenance["by"] == "a test"
    made.config = replace(made.config, prompt=replace(prompt, max_length=case["max_length"]))
    made.save(tmp_path / "bridge.safetensors")
    bridge = Bridge.connect(BridgeCheckpoint.load(tmp_path / "bridge.safetensors"), encoder)
    tokens = encoder.tokenize(case["prompts"], bridge.config.prompt)
    assert torch.equal(tokens.ids, expected["input_ids"])
    with torch.no_grad():
        heard = bridge(case["prompts"])
    torch.testing.assert_close(heard.context, expected["context"], rtol=0, atol=1e-5)
    assert heard.mask is None and heard.pooled is None


def test_names_go_both_ways_and_tensors_stay_to_the_bit(qwen: Path) -> None:
    theirs = load_file(QWEN / "adapter.safetensors")
    made = read_qwen(qwen)
    again = to_lone(QWEN_SDXL, made)
    assert again.keys() == theirs.keys()
    assert all(
        torch.equal(again[name], tensor) and again[name].dtype == tensor.dtype for name, tensor in theirs.items()
    )
    projection = load_file(T5 / "text_encoder" / "model.safetensors")
    for name in (name for name in projection if name.startswith("final_projection.")):
        ours = DISTILL_T5.to_ours(name)
        assert ours is not None and DISTILL_T5.to_theirs(ours) == name
    assert DISTILL_T5.to_ours("encoder.shared.weight") is None
    made.language_lora["layers.0"] = Delta(torch.zeros(1, 2), torch.zeros(2, 1), 1.0)
    with pytest.raises(ValueError, match="the bridge has a language LoRA, for which an adapter"):
        to_lone(QWEN_SDXL, made)


def test_each_kind_knows_its_own_files() -> None:
    names = {row: list(load_file(file)) for row, file in ((QWEN_SDXL, QWEN / "adapter.safetensors"),)}
    names[DISTILL_T5] = list(load_file(T5 / "text_encoder" / "model.safetensors"))
    ella = list(load_file(GOLDEN / "connectors" / "ella" / "adapter.safetensors"))
    for row in names:
        assert [other for other in (*names.values(), ella) if row.is_of(other)] == [names[row]]


def changed(tmp_path: Path, **changes: Tensor | None) -> Path:
    state = load_file(QWEN / "adapter.safetensors") | changes
    save_file({name: tensor for name, tensor in state.items() if tensor is not None}, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ctx_proj.bias": None}, r"lacks the tensor ctx_proj\.bias; fetch it again"),
        ({"latent_queries": None}, r"lacks the tensor latent_queries; fetch it again"),
        (
            {"extra.weight": torch.zeros(1)},
            r"the tensor extra\.weight is of an adapter of qwen-sdxl-adapter of a version",
        ),
        ({"blocks.0.gate": torch.zeros(1)}, r"blocks\.0\.gate of .* is \(1,\), .* of its sizes has no such tensor"),
        ({"pool_proj.0.bias": torch.zeros(3)}, r"pool_proj\.0\.bias of .* is \(3,\), .* of its sizes has \(32,\)"),
    ],
)
def test_a_file_of_a_kind_with_other_tensors(qwen: Path, tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_qwen(qwen, changed(tmp_path, **changes))


def test_other_models_on_either_side(qwen: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the adapter gives width 24, the vision model tiny sdxl takes 25"):
        read_qwen(qwen, vision=vision(25))
    with pytest.raises(ValueError, match="a pooled vector of width 20, tiny sd1 takes none: name the vision model"):
        read_qwen(qwen, vision=vision(24, "sd1"), pooled_width=None)
    (tmp_path / "text_encoder").symlink_to(T5 / "text_encoder")
    (tmp_path / "tokenizer").symlink_to(GOLDEN / "t5_unet" / "tokenizer")
    with pytest.raises(ValueError, match=r"the adapter takes width 32, the language model .* gives 16"):
        read_qwen(tmp_path / "text_encoder")
    with pytest.raises(ValueError, match=r"adapter\.heads = 5 does not divide the adapter's inner width 32"):
        read_qwen(qwen, heads=5)
