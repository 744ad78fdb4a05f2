"""qwen-sdxl-adapter and DistillT5 from prompts on, what of them is refused, and an adapter in a GGUF file."""

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
from lavi_bridge.lavi_core.importers import read_foreign, read_foreign_config
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.tests.lavi_core.language.qwen35 import write_qwen35
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
    return write_qwen35(tmp_path_factory.mktemp("qwen35"), width=64)


QWEN_FILE, T5_FILE = QWEN / "adapter.safetensors", T5 / "model.safetensors"


def test_qwen_sdxls_text_path(qwen: Path) -> None:
    """As its scripts/inference.py calls Qwen; an empty prompt has no token that is not masked."""
    import transformers

    encoder, prompts = TextEncoder.load(qwen, dtype=torch.float32), ["", "a red circle left of a blue square"]
    bridge = Bridge.connect(read_foreign(QWEN_FILE, encoder=encoder), encoder)
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


@pytest.fixture
def t5(tmp_path: Path) -> Path:
    """DistillT5's folder, with the tokenizer that Flux has beside it."""
    (tmp_path / "text_encoder").symlink_to(T5)
    (tmp_path / "tokenizer").symlink_to(GOLDEN / "t5_unet" / "tokenizer")
    return tmp_path / "text_encoder"


def test_distill_t5_from_prompts_to_context(t5: Path, tmp_path: Path) -> None:
    """Its own folder is the language model of the bridge, its file the bridge."""
    case, expected = json.loads((T5 / "case.json").read_text()), load_file(T5 / "expected.safetensors")
    encoder, flux = TextEncoder.load(t5, dtype=torch.float32), vision(36, "flux")
    recipe = read_foreign_config(T5_FILE, encoder=encoder).prompt
    assert (recipe.max_length, recipe.language_mask, recipe.padding_side) == (512, False, "right")
    made = read_foreign(T5_FILE, encoder=encoder, vision=flux, prompt={"max_length": case["max_length"]})
    assert made.config.vision == replace(flux, other_pooled=768)  # of CLIP-L
    made.save(tmp_path / "bridge.safetensors")
    bridge = Bridge.connect(BridgeCheckpoint.load(tmp_path / "bridge.safetensors"), encoder)
    tokens = encoder.tokenize(case["prompts"], bridge.config.prompt)
    assert torch.equal(tokens.ids, expected["input_ids"])
    with torch.no_grad():
        heard = bridge(case["prompts"])
    torch.testing.assert_close(heard.context, expected["context"], rtol=0, atol=1e-5)
    assert heard.mask is None and heard.pooled is None


def changed(tmp_path: Path, **changes: Tensor | None) -> Path:
    state = load_file(QWEN_FILE) | changes
    save_file({name: tensor for name, tensor in state.items() if tensor is not None}, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ctx_proj.bias": None}, r"lacks the tensor ctx_proj\.bias; fetch it again"),
        ({"latent_queries": torch.zeros(1, 78, 32)}, r"blocks\.0\..+ of .+ has shape \[\d+"),
        (
            {"extra.weight": torch.zeros(1)},
            r"an adapter of qwen-sdxl-adapter, but 1 .+ no place in one, first extra\.weight",
        ),
        ({"blocks.0.gate": torch.zeros(1)}, r"no place in one, first blocks\.0\.gate"),
        (
            {"pool_proj.0.bias": torch.zeros(3)},
            r"pool_proj\.0\.bias of .+ has shape \[3\], .+ of its widths has \[64\]",
        ),
    ],
)
def test_a_file_of_a_kind_with_other_tensors(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_foreign(changed(tmp_path, **changes))


def test_other_models_on_either_side(qwen: Path, t5: Path) -> None:
    with pytest.raises(ValueError, match=r"a vision model of context width 24 .Stable Diffusion XL., tiny sdxl has 25"):
        read_foreign_config(QWEN_FILE, vision=vision(25))
    with pytest.raises(ValueError, match=r"a language model of width 64 \(Qwen/Qwen3\.5-0\.8B-Base\), .+ has 16: name"):
        read_foreign_config(QWEN_FILE, encoder=TextEncoder.skeleton(t5))
    with pytest.raises(ValueError, match=r"adapter\.heads = 5 does not divide the adapter's inner width 64"):
        read_foreign_config(QWEN_FILE, encoder=TextEncoder.skeleton(qwen), heads=5)


def test_an_adapter_in_a_gguf_is_named(tmp_path: Path) -> None:
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "pig")  # as gguf-trainer 0.0.14 exports it
    writer.add_uint32("adapter.in_dim", 4)
    for name in ("slot_query", "seed_embed.weight", "in_proj.weight"):
        writer.add_tensor(f"adapter.{name}", np.zeros((2, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(
        ValueError, match=r"x\.gguf is a Ming-Image or Qwen3\.5 adapter of gguf-trainer, which asks with another"
    ):
        read_foreign(tmp_path / "x.gguf")
