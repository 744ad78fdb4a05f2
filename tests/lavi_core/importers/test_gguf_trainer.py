"""gguf-trainer's adapter for PixArt in its GGUF file, and pig_clip, the language model that it was trained with."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lavi_bridge.lavi_core import adapters
from lavi_bridge.lavi_core.bridge import Bridge
from lavi_bridge.lavi_core.checkpoint import BridgeCheckpoint, read_config
from lavi_bridge.lavi_core.conditioning import HiddenStates
from lavi_bridge.lavi_core.exporters import write_gguf
from lavi_bridge.lavi_core.importers import dialect_of, presets, read_foreign, read_foreign_config
from lavi_bridge.lavi_core.importers.gguf_trainer import GGUF_TRAINER
from lavi_bridge.lavi_core.importers.key_map import theirs_of
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.lavi_core.language.gguf_file import gguf_plain
from lavi_bridge.tests.lavi_core.importers.test_peers import vision
from lavi_bridge.tests.lavi_core.language.gguf_files import write_own_names
from lavi_bridge.tests.lavi_core.language.qwen3 import write_qwen3

GOLDEN = Path(__file__).parents[2] / "golden"
FILE = GOLDEN / "connectors" / "gguf_trainer" / "adapter.gguf"
T5 = GOLDEN / "t5_unet" / "tokenizer"
PROMPTS = ["a red fox", "", "sea"]


@pytest.fixture(scope="module")
def pig_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 by its own names in a GGUF file without a tokenizer; config and tokenizer lie in a folder beside it."""
    folder = write_qwen3(tmp_path_factory.mktemp("models") / "pig_clip-f16")
    file = write_own_names(folder.with_suffix(".gguf"), folder)
    (folder / "model.safetensors").rename(folder.parent / "whole.safetensors")
    return file


def test_the_language_model_is_read_by_its_own_names(pig_clip: Path, tmp_path: Path) -> None:
    import transformers

    encoder = TextEncoder.load(pig_clip)
    whole = tmp_path / "whole"
    shutil.copytree(pig_clip.with_suffix(""), whole)
    shutil.copy(pig_clip.parent / "whole.safetensors", whole / "model.safetensors")
    model = transformers.AutoModel.from_pretrained(whole, dtype=torch.float32)
    for name, weight in model.named_parameters():
        rounded = weight.half().float() if weight.ndim > 1 else weight
        assert torch.equal(encoder.model.get_parameter(name), rounded), name
    tokens = encoder.tokenize(PROMPTS[:1], read_foreign_config(FILE).prompt)
    assert encoder(tokens, read_foreign_config(FILE).prompt).states.shape[-1] == 24
    alone = tmp_path / "alone.gguf"
    shutil.copy(pig_clip, alone)
    with pytest.raises(ValueError, match=r"alone\.gguf holds no tokenizer: .+ into a folder alone beside it, or"):
        TextEncoder.load(alone)
    chosen = TextEncoder.load(alone, config=whole)
    assert encoder.config.fingerprint is not None and chosen.config.fingerprint == encoder.config.fingerprint


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"num_hidden_layers": 1, "layer_types": None},
            r"has 11 tensors that Qwen3Model has no place for, first model\.layers\.1",
        ),
        ({"model_type": "llama"}, r"has 4 tensors that LlamaModel has no place for, first .+q_norm"),
        (
            {"num_hidden_layers": 3, "layer_types": None},
            r"lacks 11 tensors that Qwen3Model has by its config, first layers\.2",
        ),
        ({"hidden_size": 48}, r"embed_tokens\.weight of shape \(378, 24\), Qwen3Model has \(378, 48\)"),
    ],
)
def test_the_config_of_another_model_is_refused(pig_clip: Path, tmp_path: Path, changed: dict, message: str) -> None:
    """Of fewer layers too, or of a family without some of its weights, which would give other states."""
    folder = shutil.copytree(pig_clip.with_suffix(""), tmp_path / "other")
    config = json.loads((folder / "config.json").read_text()) | changed
    (folder / "config.json").write_text(json.dumps(config))
    for read in (TextEncoder.load, TextEncoder.skeleton):
        with pytest.raises(ValueError, match=message + ".*; choose the config that belongs to it"):
            assert read(pig_clip, config=folder).config.fingerprint


def test_quantised_here_it_is_told_by_the_weights_before(pig_clip: Path) -> None:
    plain = TextEncoder.skeleton(pig_clip).config
    for weights in ("stored", "8-bit", "4-bit"):
        assert TextEncoder.load(pig_clip, weights=weights).config.fingerprint == plain.fingerprint, weights


@torch.no_grad()
def test_from_prompts_to_context(pig_clip: Path, tmp_path: Path) -> None:
    import transformers

    encoder, tokenizer = TextEncoder.load(pig_clip), transformers.AutoTokenizer.from_pretrained(T5)
    read_foreign(FILE, encoder=encoder, query_tokenizer=T5).save(tmp_path / "bridge.safetensors")
    bridge = Bridge.connect(BridgeCheckpoint.load(tmp_path / "bridge.safetensors"), encoder)
    heard = bridge(PROMPTS)
    assert heard.mask is not None and dialect_of(FILE) == "gguf_trainer" and presets(FILE) == ("gguf-trainer-pixart",)
    for i, prompt in enumerate(PROMPTS):
        tokens = encoder.tokenize([prompt], bridge.config.prompt)
        states, mask, _ = encoder(tokens, bridge.config.prompt)
        ids = tokenizer(prompt).input_ids
        padded = torch.tensor([ids + [0] * (12 - len(ids))])  # as its trainer hands it the window
        wanted = bridge.adapter(HiddenStates(states, mask, padded)).context[0, : len(ids)]
        assert heard.mask[i].sum() == len(ids)
        torch.testing.assert_close(heard.context[i, : len(ids)], wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(bridge([prompt]).context[0], wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_longer_prompt_is_cut_before_its_end_token_and_that_is_told(pig_clip: Path) -> None:
    encoder = TextEncoder.load(pig_clip)
    bridge = Bridge.connect(read_foreign(FILE, encoder=encoder, query_tokenizer=T5), encoder)
    queries, prompt = bridge.queries, "a red circle left of a blue square in the snow"
    assert queries is not None and queries.longest == 12
    asked = queries([prompt, "sea"])
    assert asked.shape == (2, 12) and asked[0, -1] == 1 and bridge([prompt]).context.shape[1] == 12
    told, count = queries.cut_off(prompt), queries.count_cut(prompt)
    last = queries.read(prompt)[-2].span
    assert last is not None and told.endswith(f"asks with 12 at most: {prompt[last[1] :].strip()!r}")
    assert told.startswith(f"{count} tokens of the prompt are cut off") and count > 3
    assert queries.cut_off("sea") == "" and queries.count_cut("sea") == 0
    with pytest.raises(ValueError, match=r"asks with 12 tokens of its second tokenizer at most, the prompt has 13"):
        bridge.adapter(
            HiddenStates(torch.zeros(1, 2, 24), torch.ones(1, 2, dtype=torch.bool), torch.ones(1, 13).long())
        )


def test_it_is_written_as_its_own_code_reads_it(tmp_path: Path) -> None:
    """To the bit, whatever the dtype in between: vectors and the queries are float32, which its engine adds by."""
    own, header = gguf_plain(FILE), GGUF_TRAINER.gguf
    assert header is not None
    made = header(read_foreign_config(FILE).adapter)
    write_gguf(tmp_path / "back.gguf", own, made)
    back = gguf_plain(tmp_path / "back.gguf")
    assert back.keys() == own.keys()
    assert all(back[name].dtype == own[name].dtype and torch.equal(back[name], own[name]) for name in own)
    halves = {name: tensor.half() for name, tensor in own.items()}
    write_gguf(tmp_path / "back.gguf", halves, made)
    back = gguf_plain(tmp_path / "back.gguf")
    assert {name: t.dtype for name, t in back.items()} == {name: t.dtype for name, t in own.items()}
    assert torch.equal(back["adapter.query"], own["adapter.query"].half().float())
    assert not list(tmp_path.glob(".*.part"))


def test_the_size_of_the_published_kind_and_of_one_between_t5_large_and_sd14() -> None:
    """176 tensors, as its pack says; the other as training/README.md has it."""
    sizes = {"in_width": 1024, "vocabulary": 32128}
    with torch.device("meta"):
        state = adapters.build(adapters.configure("seeded_resampler", out_width=4096, inner=1024, **sizes)).state_dict()
        small = adapters.build(adapters.configure("seeded_resampler", out_width=768, **sizes | {"vocabulary": 32100}))
    assert sum(map(len, theirs_of(state, GGUF_TRAINER.keys).values())) == 176
    assert sum(tensor.numel() for tensor in state.values()) == 139_064_320
    assert sum(parameter.numel() for parameter in small.parameters()) == 82_844_160


def test_refusals(pig_clip: Path, tmp_path: Path) -> None:
    import gguf
    import numpy as np

    with pytest.raises(
        ValueError, match=r"a seeded resampler of gguf-trainer, which asks with .+ second tokenizer, T5"
    ):
        read_foreign(FILE)
    with pytest.raises(ValueError, match=r"a vision model of context width 32 \(PixArt-alpha\), tiny pixart has 33"):
        read_foreign(FILE, query_tokenizer=T5, vision=vision(33, "pixart"))
    with pytest.raises(
        ValueError, match=r"is no bridge, but a seeded resampler of gguf-trainer, .+ lavi-bridge import"
    ):
        read_config(FILE)
    for config in (None, pig_clip.with_suffix("")):
        with pytest.raises(
            ValueError, match=r"is no language model, but a seeded resampler of gguf-trainer, Load Bridge"
        ):
            TextEncoder.load(FILE, config=config)
    header, config = GGUF_TRAINER.gguf, read_foreign_config(FILE).adapter
    assert header is not None and config.heads == 2
    with pytest.raises(ValueError, match=r"a head for each 64 channels, 2 of 128, the bridge's adapter has 4, and"):
        header(replace(config, heads=4))
    writer = gguf.GGUFWriter(str(tmp_path / "q8.gguf"), "pig")
    for name, tensor in gguf_plain(FILE).items():
        if name == "adapter.blocks.0.mlp.0.weight":
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(tensor.float().numpy(), kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, np.asarray(tensor.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert read_foreign_config(tmp_path / "q8.gguf").adapter.depth == 1  # the header alone is read
    with pytest.raises(
        ValueError, match=r"q8\.gguf has weights in Q8_0 \(adapter\.blocks\.0\.mlp\.0\.weight\), an ada"
    ):
        read_foreign(tmp_path / "q8.gguf", query_tokenizer=T5)
