"""A bridge to which an empty prompt is padding and nothing else, as qwen-sdxl-adapter's is."""

# pyright: reportMissingImports=false

from __future__ import annotations

import importlib
from dataclasses import replace

import torch
from host_side import MODELS, check, connected, language_model

core = importlib.import_module("hyphen-pack.lavi_core.checkpoint")
adapters = importlib.import_module("hyphen-pack.lavi_core.adapters")
PromptOptions = importlib.import_module("hyphen-pack.nodes.prompt_syntax").PromptOptions


@check
def an_empty_prompt_is_heard_as_its_padding_and_words_are_weighed_against_it():
    file = MODELS / "lavi_bridges" / "no-token.safetensors"
    was = core.BridgeCheckpoint.load(file.with_stem("gpt2")).config
    sizes = {"in_width": was.adapter.in_width, "out_width": was.adapter.out_width}
    made = adapters.configure("perceiver", **sizes, tokens=5, depth=1, heads=2, inner=16)
    torch.manual_seed(0)
    adapter = adapters.build(made)
    torch.nn.init.normal_(adapter.queries)
    plain = replace(was.prompt, template="{prompt}", cut_template=False, add_special_tokens=False, vision_mask=False)
    prompt = replace(plain, padding="max_length", no_token="masked")
    config = replace(was, adapter=made, prompt=prompt, language_lora=None, vision_lora=None)
    core.BridgeCheckpoint(config, adapter.state_dict()).save(file)
    try:
        bridge = connected("no-token", language_model("gpt2"))
        tokens = bridge.encoder.tokenize(["", "a red circle"], prompt)
        assert int(tokens.mask[0].sum()) == 0 < int(tokens.mask[1].sum())
        states = bridge.encoder(tokens, prompt)
        heard = adapter.eval()(states).context
        for i, text in enumerate(("", "a red circle")):
            torch.testing.assert_close(bridge.encode(text)[0][0][0], heard[i : i + 1], rtol=1e-4, atol=1e-5)
        weighed = [
            bridge.encode(f"(a red circle:{weight})", PromptOptions(weights=True))[0][0][0] for weight in (1.0, 0.5)
        ]
        torch.testing.assert_close(weighed[0], heard[1:], rtol=1e-4, atol=1e-5)
        assert (weighed[1] - weighed[0]).abs().max() > 1e-4 and bool(weighed[1].isfinite().all())
    finally:
        file.unlink()
