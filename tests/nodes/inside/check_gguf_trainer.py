"""gguf-trainer's adapter and language model, two GGUF files, on a host."""

# pyright: reportMissingImports=false

from __future__ import annotations

import importlib
import shutil

import torch
from host_side import MODELS, Lines, bridge_, check, node_classes

context_tokens_ = importlib.import_module("hyphen-pack.nodes.context_tokens")
checkpoint_ = importlib.import_module("hyphen-pack.lavi_core.checkpoint")
folders_ = importlib.import_module("hyphen-pack.nodes.folders")
model_search_ = importlib.import_module("hyphen-pack.nodes.model_search")
prompt_syntax_ = importlib.import_module("hyphen-pack.nodes.prompt_syntax")
save_ = importlib.import_module("hyphen-pack.nodes.save")
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
    context, listed = context_tokens_.find_context_tokens(bridge.encode(LONG)[0])
    assert listed.cut == (bridge.clip.cond_stage_model.queries.cut_text(LONG),) and len(listed.cut[0]) > 200
    assert f"CUT OFF  {listed.cut[0]!r}" in context_tokens_.table(context, listed)
    with Lines() as texts:
        bridge.clip.tokenize(LONG)
    assert any("asks with 120 at most" in text and "Bridge Text Encode" in text for text in texts), texts
    chunks = prompt_syntax_.PromptOptions(long_prompts="chunk")
    both = bridge.encode("a red circle BREAK a blue square", chunks)[0][0][0]
    parts = [bridge.encode(text)[0][0][0] for text in ("a red circle", "a blue square")]
    joined = torch.cat(parts, dim=1)
    assert both.shape == joined.shape and (both - joined).abs().max() <= 1e-5 * joined.abs().max()


@check
def its_language_model_is_found_for_a_bridge_of_it_and_quantised_is_the_same():
    path = MODELS / "lavi_bridges" / "of-pig-clip.safetensors"
    try:
        save_.saved(loaded(), None).save(path)
        wanted = checkpoint_.read_config(path).language
        assert wanted.fingerprint and "tiny-pig-clip.gguf" in model_search_.search(wanted).fitting
        for dtype in ("float32", "4-bit"):
            language = node_classes["LaViBridgeLoadLanguageModel"].execute("tiny-pig-clip.gguf", dtype).args[0]
            bridge_.LoadBridge.execute(language, path.name, 1.0, False)
    finally:
        path.unlink(missing_ok=True)


@check
def a_config_that_is_put_beside_it_later_is_seen():
    file, folder = MODELS / "LLM" / "later.gguf", MODELS / "LLM" / "later"
    wanted = loaded().encoder.config
    try:
        shutil.copy(MODELS / "LLM" / "tiny-pig-clip.gguf", file)
        assert "holds no tokenizer" in model_search_.look_at(file.name, wanted).problem
        shutil.copytree(MODELS / "LLM" / "tiny-pig-clip", folder)
        assert model_search_.look_at(file.name, wanted).config.fingerprint == wanted.fingerprint
    finally:
        file.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
