"""AnimaT5Free's conditioner: rows cut as its own code cuts them, its text encoder in one file, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lavi_bridge.lavi_core.bridge import Bridge, queries_of
from lavi_bridge.lavi_core.checkpoint import BridgeCheckpoint
from lavi_bridge.lavi_core.config import AdapterConfig
from lavi_bridge.lavi_core.exporters import to_foreign
from lavi_bridge.lavi_core.importers import dialect_of, read_any, read_foreign
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.lavi_core.language.row_cutter import RowCutter
from lavi_bridge.lavi_core.language.single_file import BUNDLED
from lavi_bridge.lavi_core.prompt import PromptRecipe
from lavi_bridge.tests.lavi_core.language.qwen35 import write_qwen35
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).parents[2] / "golden" / "connectors" / "anima_t5free"
FILE = GOLDEN / "adapter.safetensors"
CASES: list[dict[str, Any]] = json.loads((GOLDEN / "case.json").read_text())["prompts"]
PROMPTS = [case["prompt"] for case in CASES]
CONFIG, LEXICON = "t5free_config_bytes", "t5free_lexicon_bytes"


def as_bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def written(folder: Path, state: dict[str, torch.Tensor | None]) -> Path:
    """A copy with tensors put in, or left out where they are None."""
    file = folder / "t5free.safetensors"
    whole = load_file(FILE) | state
    save_file({name: tensor for name, tensor in whole.items() if tensor is not None}, file)
    return file


def told(text: torch.Tensor) -> Any:
    return json.loads(bytes(text.numpy()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen35(tmp_path_factory.mktemp("qwen35"), width=24)


@pytest.fixture(scope="module")
def encoder(folder: Path) -> TextEncoder:
    return TextEncoder.load(folder, dtype=torch.float32)


def cutter() -> RowCutter:
    found = queries_of(read_foreign(FILE))
    assert isinstance(found, RowCutter)
    return found


def test_prompts_are_cut_as_its_own_code_cuts_them() -> None:
    """By the lexicon, and else by the segmenter; a row of a first letter before a word; of what is not ASCII, words."""
    rows = cutter()
    for case in CASES:
        spans = [(0, 0) if query.span is None else query.span for query in rows.read(case["prompt"])]
        assert spans == [tuple(span) for span in case["spans"]]
    assert [query.text for query in rows.read("a größer square")] == ["a", "größer", "square", "(end)"]


def test_from_prompts_to_context(encoder: TextEncoder) -> None:
    expected = load_file(GOLDEN / "expected.safetensors")
    bridge = Bridge.connect(read_foreign(FILE, encoder=encoder), encoder)
    assert bridge.config.adapter.heads == 4 and bridge.config.prompt.hidden_states == (1, 2)  # as the file says
    for row, case in zip(expected["queries"], CASES, strict=True):
        assert torch.equal(bridge.tokenize([case["prompt"]], bridge.config.prompt).queries[0], row[row[:, 0] >= 0])  # type: ignore[index]
    with torch.no_grad():
        heard, alone = bridge(PROMPTS), [bridge([prompt]) for prompt in PROMPTS]
    torch.testing.assert_close(heard.context, expected["context"], rtol=0, atol=1e-5)
    assert heard.mask is not None and torch.equal(heard.mask, expected["queries"][..., 0] >= 0)
    for i, one in enumerate(alone):
        assert one.mask is not None and bool(one.mask.all())
        torch.testing.assert_close(one.context[0], heard.context[i, heard.mask[i]], rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_blank_prompt_says_zeros_and_a_strength_is_against_them(encoder: TextEncoder, tmp_path: Path) -> None:
    file = tmp_path / "bridge.safetensors"
    read_foreign(FILE, encoder=encoder).save(file)
    bridge = Bridge.connect(BridgeCheckpoint.load(file), encoder)
    for blank in ("", "  "):
        said = bridge([blank]).context
        assert said.shape == (1, 1, 32) and not said.any()
    whole, half = bridge(PROMPTS[:1]).context, bridge.heard(PROMPTS[:1], strength=0.5)
    assert not hasattr(half, "at")
    torch.testing.assert_close(half.context, whole / 2, rtol=1e-4, atol=1e-5)


def test_rows_that_are_too_many_are_cut_and_told(encoder: TextEncoder) -> None:
    rows, prompt = cutter(), "a red " * 30
    config = AdapterConfig(kind="row_refiner", in_width=48, inner_width=16, out_width=32)
    assert [len(rows.read(blank)) for blank in ("", "\n")] == [1, 1]
    assert len(rows.read(prompt)) == 40 and rows.count_cut(prompt) == 51
    rows.limited(config, 20, 4)
    assert len(rows.read(prompt)) == 16 and rows.read(prompt)[-1].span is None
    assert "rows of the prompt are cut off and not heard, the bridge asks with 16 at most: 'a red" in rows.cut_off(
        prompt
    )
    assert prompt.endswith(rows.cut_text(prompt)) and not rows.cut_off(PROMPTS[0]) and not rows.cut_text(PROMPTS[0])
    tokens = encoder.tokenize([prompt], read_foreign(FILE).config.prompt)
    assert rows([prompt], tokens).shape == (1, 16, 3) and rows.widest(tokens).shape == (1, 16, 3)


def test_what_the_language_model_does_not_hear_makes_no_row(encoder: TextEncoder) -> None:
    """A recipe of fewer tokens leaves rows without states, which say nothing, and the others as many as they were."""
    recipe = read_foreign(FILE, prompt={"max_length": 4}).config.prompt
    tokens = encoder.tokenize(PROMPTS[:1], recipe)
    assert tokens.reports[0].cut
    rows = cutter()(PROMPTS[:1], tokens)[0]
    assert len(rows) == len(CASES[0]["spans"]) and int(rows[:, 1].max()) <= 4
    heard = [first < stop for first, stop, _ in rows.tolist()]
    assert heard[-1] and sum(heard) == 1 + sum(span[0] < 18 for span in CASES[0]["spans"][:-1])


def test_of_a_prompt_that_is_cut_whole_no_row_has_states(encoder: TextEncoder) -> None:
    """All tokens that are heard are the template's."""
    recipe = PromptRecipe(template="say {prompt} now", max_length=7, padding="longest", vision_mask=True)
    length = len(encoder.tokenize(["a"], replace(recipe, max_length=99)).ids[0]) - 1
    tokens = encoder.tokenize(["a"], replace(recipe, max_length=length))
    assert tokens.reports[0].cut == 1
    assert cutter()(["a"], tokens)[0].tolist() == [[0, 0, 0], [0, 0, 0]]


def test_it_is_not_written_with_other_heads_or_layers_than_its_file_says() -> None:
    for changes, says in (
        ({"heads": 2}, r"hidden_states \(1, 2\) with 2 heads, .+ says \(1, 2\) and 4"),
        ({"prompt": {"hidden_states": (2, 1)}}, r"hidden_states \(2, 1\) with 4 heads, .+ says \(1, 2\) and 4"),
    ):
        with pytest.raises(ValueError, match=says):
            to_foreign(read_foreign(FILE, **changes), "anima_t5free")  # type: ignore[arg-type]


@torch.no_grad()
def test_its_text_encoder_is_language_model_and_bridge(folder: Path, encoder: TextEncoder, tmp_path: Path) -> None:
    """One file, with config and tokenizer as bytes among the tensors."""
    beside: dict[str, torch.Tensor | None] = dict(load_file(folder / "model.safetensors"))
    beside |= {key: as_bytes((folder / name).read_text()) for name, key in BUNDLED.items()}
    file = written(tmp_path, beside)
    assert dialect_of(file) == "anima_t5free"
    whole = TextEncoder.load(file, dtype=torch.float32)
    assert whole.config.fingerprint == encoder.config.fingerprint
    bridge, plain = (Bridge.connect(read_any(file, encoder=one), one) for one in (whole, encoder))
    assert torch.equal(bridge(PROMPTS).context, plain(PROMPTS).context)
    for changes, says in (
        ({BUNDLED["tokenizer.json"]: None}, f"holds a language model without {BUNDLED['tokenizer.json']}"),
        (
            {BUNDLED["config.json"]: as_bytes("{x")},
            r"of what t5free.safetensors holds: t5free.safetensors/.+config.json",
        ),
        ({BUNDLED["tokenizer.json"]: as_bytes("{}")}, r"of what .+ holds: the tokenizer in t5free.safetensors/"),
    ):
        with pytest.raises(ValueError, match=says):
            TextEncoder.load(written(tmp_path, beside | changes), dtype=torch.float32)


def test_refusals(folder: Path, tmp_path: Path) -> None:
    state = load_file(FILE)

    def refused(says: str, **changes: torch.Tensor | None) -> None:
        file = written(tmp_path, {name.replace("__", "."): tensor for name, tensor in changes.items()})
        with pytest.raises(ValueError, match=says) as found:
            Bridge.connect(read_foreign(file), TextEncoder.skeleton(folder))
        assert "\n" not in str(found.value)

    refused(f"AnimaT5Free's conditioner without {LEXICON}, by which .+ take the text encoder's file", **{LEXICON: None})
    refused("the config of AnimaT5Free's conditioner is not readable", **{CONFIG: as_bytes("{}")})
    refused("what prompts are cut into rows by in the bridge is not readable", **{LEXICON: as_bytes('{"a": 3}')})
    refused(r"the word 'a' has -1 rows before it", **{LEXICON: as_bytes('{"a": [[-1, []]]}')})
    refused("the config of .+ is not readable", **{CONFIG: as_bytes('{"max_rows": Infinity, "mu_keys": ["x"]}')})
    refused("max_rows is 1, mu_keys", **{CONFIG: as_bytes('{"max_rows": 1, "mu_keys": ["x"]}')})
    refused(f"{CONFIG} of .+ is no text in bytes", **{CONFIG: torch.zeros(4)})
    refused("texts in .+ are not UTF-8", **{LEXICON: torch.tensor([200, 200], dtype=torch.uint8)})
    refused(r"lacks the tensor c0\.s", conditioner__c0__s=None)
    refused(r"1 of its tensors have no place in one, first c0\.odd", conditioner__c0__odd=torch.zeros(1))
    refused(r"refiner\.out\.bias of .+ has shape \[3\]", conditioner__refiner__out__bias=torch.zeros(3))
    config = told(state[CONFIG])
    config["conditioner"]["c0"]["mu_keys"].pop()
    refused("names 5 constants of rows, its adapter has 6", **{CONFIG: as_bytes(json.dumps(config))})
    config["conditioner"]["c0"]["mu_keys"].append("[9,99)L[9,99)")
    rows = queries_of(read_foreign(written(tmp_path, {CONFIG: as_bytes(json.dumps(config))})))
    assert rows is not None
    with pytest.raises(ValueError, match=r"no constant \[6,40\)L\[8,40\), which a prompt of 14 rows asks for"):
        rows.read(PROMPTS[0])
