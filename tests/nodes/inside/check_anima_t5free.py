"""AnimaT5Free's conditioner and the text encoder that is in its file, on a host."""

# pyright: reportMissingImports=false

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from host_side import MODELS, Lines, bridge_, check, node_classes
from safetensors.torch import load_file

context_tokens_ = importlib.import_module("hyphen-pack.nodes.context_tokens")
prompt_syntax_ = importlib.import_module("hyphen-pack.nodes.prompt_syntax")
save_ = importlib.import_module("hyphen-pack.nodes.save")
GOLDEN = Path(context_tokens_.__file__ or "").parents[1] / "tests" / "golden" / "connectors" / "anima_t5free"
PROMPTS = [case["prompt"] for case in json.loads((GOLDEN / "case.json").read_text())["prompts"]]
ENCODER, FILE = "tiny-anima-t5free.safetensors", "golden-anima-t5free.safetensors"


def loaded(file: str = FILE) -> Any:
    """With the language model of the bundled file."""
    language = node_classes["LaViBridgeLoadLanguageModel"].execute(ENCODER, "float32").args[0]
    return bridge_.LoadBridge.execute(language, file, 1.0, False).args[0]


@check
def it_says_what_its_own_code_says_and_zeros_up_to_512():
    bridge, expected = loaded(), load_file(GOLDEN / "expected.safetensors")
    assert bridge.config.provenance["preset"] == "anima-t5free" and (MODELS / "llm_adapters" / FILE).is_file()
    for prompt, queries, wanted in zip(PROMPTS, expected["queries"], expected["context"], strict=True):
        count = int((queries[:, 0] >= 0).sum())
        context, more = bridge.encode(prompt)[0][0]
        assert context.shape == (1, 512, 32) and not context[:, count:].any()
        assert (context[0, :count] - wanted[:count]).abs().max() <= 1e-5
        kinds = [token.kind for token in more[context_tokens_.CONTEXT_TOKENS].tokens]
        assert kinds[count - 1] == "special" and kinds.count("prompt") == count - 1 and len(kinds) == 512
    for blank in ("", "  "):
        assert not bridge.encode(blank)[0][0][0].any()
    _, report = bridge_.BridgeTextEncode.execute(bridge, PROMPTS[0]).args
    assert "the adapter asks with 14 rows cut from the prompt's letters" in report


@check
def rows_are_weighed_chunked_and_cut():
    bridge = loaded()
    told = bridge.encode(PROMPTS[0])[0][0][0]
    ours = bridge_.BridgeTextEncode.execute(bridge, PROMPTS[0].replace("red", "(red:1.5)"), True).args[0]
    context, listed = context_tokens_.find_context_tokens(ours)
    rows = [(token.text, token.weight) for token in listed.tokens[:14]]
    assert rows[1:4] == [("r", 1.5), ("red", 1.5), ("cir", 1.0)] and rows[-1] == ("(end)", 1.0)
    weights = torch.tensor([weight for _, weight in rows])[:, None]
    assert (context[0, :14] - told[0, :14] * weights).abs().max() <= 1e-5
    half = bridge.encode(PROMPTS[0], strength=0.5)[0][0][0]
    assert (half - told / 2).abs().max() <= 1e-5
    chunks = prompt_syntax_.PromptOptions(long_prompts="chunk")
    both = bridge.encode("a red circle BREAK a blue square", chunks)[0][0][0]
    first = bridge.encode("a red circle")[0][0][0]
    assert (both[0, :6] - first[0, :6]).abs().max() <= 1e-5 and both[0, 6].any()
    with Lines() as texts:
        context = bridge.encode("a red " * 30)[0][0][0]
    assert any(
        "51 rows of the prompt are cut off and not heard, the bridge asks with 40 at most" in text for text in texts
    )
    assert context[0, 39].any() and not context[0, 40:].any()


@check
def saved_as_a_bridge_it_holds_what_it_cuts_by():
    file = MODELS / "lavi_bridges" / "saved-t5free.safetensors"
    bridge = loaded()
    told = bridge.encode(PROMPTS[0])[0][0][0]
    try:
        save_.saved(bridge, None).save(file)
        assert torch.equal(loaded(file.name).encode(PROMPTS[0])[0][0][0], told)
    finally:
        file.unlink(missing_ok=True)
