"""Files of other projects' adapters are read as they are, written back to the bit, and refused in one sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lavi_bridge.lavi_core import adapters
from lavi_bridge.lavi_core.bridge import check_language
from lavi_bridge.lavi_core.checkpoint import BridgeCheckpoint
from lavi_bridge.lavi_core.conditioning import HiddenStates
from lavi_bridge.lavi_core.config import AdapterConfig, LanguageConfig
from lavi_bridge.lavi_core.exporters import to_foreign
from lavi_bridge.lavi_core.importers import FOREIGN, dialect_of, presets, read_foreign, read_foreign_config
from lavi_bridge.lavi_core.importers.dialect import Shapes
from lavi_bridge.lavi_core.importers.key_map import parted, theirs_of
from lavi_bridge.lavi_core.importers.rouwei import PRESETS
from lavi_bridge.lavi_core.language.gguf_file import gguf_plain
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).parents[2] / "golden" / "connectors"
TOKENIZER = GOLDEN.parent / "t5_unet" / "tokenizer"
ELLA = GOLDEN / "ella" / "adapter.safetensors"
ROUWEI = GOLDEN / "rouwei" / "adapter.safetensors"
FILES = {  # and a preset of each
    "ella": (ELLA, "ella"),
    "rouwei": (ROUWEI, "gemma"),
    "rouwei_unfused": (ROUWEI.with_stem("adapter_unfused"), "t5gemma"),
    "rouwei_turbo": (ROUWEI.with_stem("adapter_turbo"), "gemma"),
    "qwen_sdxl": (GOLDEN / "qwen_sdxl" / "adapter.safetensors", "qwen-sdxl"),
    "distill_t5": (GOLDEN / "distill_t5" / "model.safetensors", "distill-t5"),
    "anima": (GOLDEN / "anima" / "adapter.safetensors", "anima"),
    "gguf_trainer": (GOLDEN / "gguf_trainer" / "adapter.gguf", "gguf-trainer-pixart"),
    "anima_t5free": (GOLDEN / "anima_t5free" / "adapter.safetensors", "anima-t5free"),
}


def tensors_of(file: Path) -> dict[str, torch.Tensor]:
    """By the names without a prefix."""
    if file.suffix == ".gguf":
        return {name.removeprefix("adapter."): tensor for name, tensor in gguf_plain(file).items()}
    return load_file(file)


def read(dialect: str) -> BridgeCheckpoint:
    asks = {} if FOREIGN[dialect].query_tokenizer is None else {"query_tokenizer": TOKENIZER}
    return read_foreign(*FILES[dialect], **asks)


def changed(file: Path, to: Path, **tensors: torch.Tensor | None) -> Path:
    """A copy with tensors put in, or left out where they are None; ``__`` is a dot."""
    state = load_file(file) | {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file({name: tensor for name, tensor in state.items() if tensor is not None}, to / "x.safetensors")
    return to / "x.safetensors"


@pytest.mark.parametrize("dialect", FILES)
def test_a_file_is_known_by_its_header(dialect: str) -> None:
    file, preset = FILES[dialect]
    assert dialect_of(file) == dialect and preset in presets(file)
    config = read_foreign_config(file, preset)
    assert config == read(dialect).config
    assert config.provenance["format"] == dialect and config.provenance["preset_source"]
    assert config.provenance["preset"] == preset and preset in FOREIGN[dialect].presets


@pytest.mark.parametrize("dialect", FILES)
def test_the_numbers_are_those_of_its_own_code(dialect: str) -> None:
    bridge, expected = read(dialect), load_file(FILES[dialect][0].with_name("expected.safetensors"))
    adapter = adapters.build(bridge.config.adapter).eval()
    adapter.load_state_dict(bridge.adapter)
    mask = expected.get("mask", torch.ones(expected["hidden_states"].shape[:2])).bool()
    with torch.no_grad():
        hidden = HiddenStates(expected["hidden_states"], mask, expected.get("queries"))
        said = adapter(hidden, expected.get("timesteps"))
    for name in ("context", "pooled"):
        found, wanted = getattr(said, name), expected.get(name)
        assert (found is None) == (wanted is None)
        if wanted is not None:
            if adapter.asks:  # what stands where none asks is left out by the mask
                found, wanted = found[said.mask], wanted[said.mask]
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dialect", FILES)
def test_the_names_are_read_both_ways(dialect: str) -> None:
    written, own = to_foreign(read(dialect), dialect), tensors_of(FILES[dialect][0])
    own = {name: tensor for name, tensor in own.items() if not name.startswith(FOREIGN[dialect].elsewhere)}
    assert written.keys() == own.keys()
    for name, tensor in own.items():
        assert torch.equal(written[name], tensor), name


def test_one_layout_of_rouwei_is_written_as_another() -> None:
    fused, turbo = (FILES[name][0] for name in ("rouwei", "rouwei_turbo"))
    written, own = to_foreign(read_foreign(fused, "gemma"), "rouwei_turbo"), load_file(turbo)
    assert written.keys() == own.keys() and all(torch.equal(written[name], own[name]) for name in own)
    with pytest.raises(ValueError, match=r"the bridge's adapter 'compressor' is not an ELLA connector"):
        to_foreign(read_foreign(fused, "gemma"), "ella")


def test_other_heads_than_a_file_is_read_with_are_refused() -> None:
    """No shape tells them; those that a user named are known in the bridge."""
    found = read("ella")
    config = replace(found.config, adapter=replace(found.config.adapter, heads=4))
    with pytest.raises(ValueError, match="read with 8 heads, which its files do not say, the bridge's adapter has 4"):
        to_foreign(replace(found, config=config), "ella")
    named = replace(config, provenance=config.provenance | {"changed": {"heads": 4}})
    assert to_foreign(replace(found, config=named), "ella").keys() == to_foreign(found, "ella").keys()


def test_a_row_for_each_test() -> None:
    assert set(FOREIGN) == set(FILES) | {"rouwei_unfused_o"}


def test_the_last_matrix_of_attention_has_two_names(tmp_path: Path) -> None:
    unfused = load_file(FILES["rouwei_unfused"][0])
    own = {name.replace("out_proj", "o_proj"): tensor for name, tensor in unfused.items()}
    save_file(own, tmp_path / "o.safetensors")
    assert own.keys() != unfused.keys() and dialect_of(tmp_path / "o.safetensors") == "rouwei_unfused_o"
    found = read_foreign(tmp_path / "o.safetensors", "gemma")
    fused = read_foreign(ROUWEI, "gemma")
    assert all(torch.equal(found.adapter[name], fused.adapter[name]) for name in fused.adapter)
    written = to_foreign(found, "rouwei_unfused_o")
    assert written.keys() == own.keys() and all(torch.equal(written[name], own[name]) for name in own)
    save_file(unfused | {"compression_attention.o_proj.bias": torch.zeros(64)}, tmp_path / "both.safetensors")
    with pytest.raises(ValueError, match=r"1 of its tensors have no place in one, first compression_attention\.o_proj"):
        read_foreign(tmp_path / "both.safetensors", "gemma")


@pytest.mark.parametrize("dialect", FILES)
def test_a_file_has_the_signs_of_one_row(dialect: str) -> None:
    file = FILES[dialect][0]
    names = gguf_plain(file) if file.suffix == ".gguf" else load_file(file)
    assert [name for name, row in FOREIGN.items() if row.is_of(names)] == [dialect]


def test_a_preset_that_is_taken_only_where_it_is_named() -> None:
    assert presets(ELLA) == ("ella",) and read_foreign_config(ELLA).prompt.padding == "longest"
    fixed = read_foreign_config(ELLA, "ella-fixed").prompt
    assert fixed.max_length == 128 and fixed.padding == "max_length"
    assert fixed.language_mask and not fixed.adapter_mask


def test_places_do_not_depend_on_the_prompts_beside() -> None:
    with pytest.raises(
        ValueError, match=r"'compressor' knows the places of tokens, .+ set prompt\.padding_side = 'right'"
    ):
        read_foreign_config(ROUWEI, "t5gemma", prompt={"padding": "longest"})
    assert read_foreign_config(ROUWEI, "gemma").prompt.padding == "longest"  # on the right


def test_of_a_language_model_that_is_not_at_hand_the_width_is_checked_and_no_more_is_claimed() -> None:
    wanted = read_foreign_config(ELLA).language
    assert (wanted.fingerprint, wanted.facts, wanted.num_layers, wanted.vocab_size) == (None, None, 0, 0)
    other = LanguageConfig(
        model_id="x", family="t5", hidden_size=48, num_layers=3, vocab_size=99, fingerprint="9" * 64, facts={"a": 1}
    )
    check_language(wanted, other)
    with pytest.raises(ValueError, match=r"google/flan-t5-xl \(hidden 48\), the loaded model is x \(hidden 64\)"):
        check_language(wanted, LanguageConfig(**(vars(other) | {"hidden_size": 64})))


def test_refusals(tmp_path: Path) -> None:
    sign = "connector.proj_in.bias"
    with pytest.raises(ValueError, match=rf"x\.safetensors lacks the tensor {sign}; fetch"):
        read_foreign(changed(ELLA, tmp_path, connector__proj_in__bias=None))
    with pytest.raises(ValueError, match=r"is an ELLA connector, but 1 of its tensors have no place in one, first odd"):
        read_foreign(changed(ELLA, tmp_path, odd=torch.zeros(1)))
    with pytest.raises(ValueError, match=rf"{sign} of .+ has shape \[3\], an ELLA connector of its widths has \[64\]"):
        read_foreign(changed(ELLA, tmp_path, connector__proj_in__bias=torch.zeros(3)))
    with pytest.raises(ValueError, match="does not say how prompts become its states: name a preset, gemma or t5gemma"):
        read_foreign(ROUWEI)
    save_file({"odd": torch.zeros(1)}, tmp_path / "y.safetensors")
    with pytest.raises(ValueError, match=r"y\.safetensors is of no known kind; known: an ELLA connector"):
        read_foreign(tmp_path / "y.safetensors")
    assert dialect_of(tmp_path / "y.safetensors") is None
    with pytest.raises(ValueError, match=r"unknown preset of an ELLA connector 'x'; known: ella"):
        read_foreign(ELLA, "x")


@pytest.mark.parametrize(
    ("preset", "narrow", "parameters", "tensors"),
    [("gemma", 3, 305_253_632, 84), ("t5gemma", 3, 357_971_200, 96)],
)
def test_the_published_sizes_choose_the_preset(
    preset: str, narrow: int, parameters: int, tensors: int, tmp_path: Path
) -> None:
    said = PRESETS[preset]
    assert said.in_width is not None and said.depth is not None
    config = AdapterConfig(
        **{"kind": "compressor", "in_width": said.in_width, "inner_width": 2048, "out_width": 2048},
        **{"pooled_width": 1280, "tokens": 308, "depth": said.depth, "narrow_depth": narrow, "heads": 16},
        **{"outer_norms": False, "positions": 512},
    )
    with torch.device("meta"):
        state = adapters.build(config).state_dict()
    assert (sum(tensor.numel() for tensor in state.values()), len(state)) == (parameters, tensors)
    shapes = Shapes(
        {name: tuple(t.shape) for name, t in parted(state, theirs_of(state, FOREIGN["rouwei"].keys)).items()}, "x"
    )
    assert FOREIGN["rouwei"].adapter(shapes, 16) == config
    assert [name for name, one in PRESETS.items() if one.fits(config)] == [preset]
    assert FOREIGN["rouwei"].vision(config).target == "sdxl"
