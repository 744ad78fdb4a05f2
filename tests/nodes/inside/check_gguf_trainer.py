"""gguf-trainer's adapter and language model, two GGUF files, on a host."""

# pyright: reportMissingImports=false

from __future__ import annotations

import importlib

import torch
from host_side import MODELS, Lines, bridge_, check, node_classes

context_tokens_ = importlib.import_module("hyphen-pack.nodes.context_tokens")
folders_ = importlib.import_module("hyphen-pack.nodes.folders")
prompt_syntax_ = importlib.import_module("hyphen-pack.nodes.prompt_syntax")
conditioning_ = importlib.import_module("hyphen-pack.lavi_core.conditioning")
FILE = "tiny-pig.gguf"
LONG = "a mill by the sea, " * 40


def loaded():
    language = node_classes["LaViBridgeLoadLanguageModel"].execute("tiny-pig-clip.gguf", "float32").args[0]
    return bridge_.LoadBridge.execute(language, FILE, 1.0, False).args[0]


@check
def it_asks_with_the_hosts_t5_tokenizer_up_to_its_window():
    import transformers

    tokenizer = transformers.T5TokenizerFast.from_pretrained(folders_.host_tokenizers()["t5"])
    bridge = loaded()
    assert bridge.config.provenance["preset"] == "gguf-trainer-pixart" and (MODELS / "llm_adapters" / FILE).is_file()
    adapter = bridge.clip.cond_stage_model.adapter
    for prompt in ("a red circle left of a blue square", "", LONG):
        tokens = bridge.encoder.tokenize([prompt], bridge.config.prompt)
        hidden = bridge.encoder(tokens, bridge.config.prompt)
        ids = tokenizer(prompt, truncation=True, max_length=120).input_ids
        padded = torch.tensor([ids + [0] * (120 - len(ids))])
        wanted = adapter(conditioning_.HiddenStates(hidden.states, hidden.mask, padded)).context[:, : len(ids)]
        context, more = bridge.encode(prompt)[0][0]
        assert (context[:, : len(ids)] - wanted).abs().max() <= 1e-5 * wanted.abs().max()
        assert context.shape[1] == len(ids)
        kinds = [token.kind for token in more[context_tokens_.CONTEXT_TOKENS].tokens]
        assert len(kinds) == len(ids) and kinds[-1] == "special"


@check
def what_is_not_asked_with_is_told_and_chunks_begin_anew():
    bridge = loaded()
    with Lines() as texts:
        _, report = bridge_.BridgeTextEncode.execute(bridge, LONG).args
    assert "the adapter asks with 120 tokens" in report
    told = [text for text in texts if "the bridge asks with 120 at most" in text]
    assert len(told) == 1 and "begins anew at each BREAK" in told[0], texts
    with Lines() as texts:
        bridge.clip.tokenize(LONG)
    assert any("asks with 120 at most" in text and "Bridge Text Encode" in text for text in texts), texts
    chunks = prompt_syntax_.PromptOptions(long_prompts="chunk")
    both = bridge.encode("a red circle BREAK a blue square", chunks)[0][0][0]
    parts = [bridge.encode(text)[0][0][0] for text in ("a red circle", "a blue square")]
    joined = torch.cat(parts, dim=1)
    assert both.shape == joined.shape and (both - joined).abs().max() <= 1e-5 * joined.abs().max()
