"""Other projects' adapters where they lie: their own code's numbers through Load Bridge, and one sentence else."""

# pyright: reportMissingImports=false

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from check_connectors import SHAPE, Seen, drawn
from host_side import (
    MODELS,
    PACK,
    PROMPTS,
    Lines,
    bridge_,
    check,
    language_,
    node_classes,
    refused,
    vision_,
    vision_model_,
)
from safetensors.torch import load_file

foreign_ = importlib.import_module("hyphen-pack.nodes.foreign")
folders_ = importlib.import_module("hyphen-pack.nodes.folders")
search_ = importlib.import_module("hyphen-pack.nodes.model_search")
lwm_ = importlib.import_module("hyphen-pack.nodes.load_with_model")
save_ = importlib.import_module("hyphen-pack.nodes.save")
timed_ = importlib.import_module("hyphen-pack.nodes.timed")

GOLDEN = Path(PACK) / "tests" / "golden" / "connectors"
ELLA = "golden-ella.safetensors"
ROUWEI = ("golden-rouwei.safetensors", "golden-rouwei-unfused.safetensors", "golden-rouwei-turbo.safetensors")
PROMPT = "a red circle left of a blue square"


def loaded(bridge, language, preset="auto", allow=False):
    """Through the node. -> what runs on its wire"""
    model = language_.LanguageModel.load(MODELS / "LLM" / language, torch.float32)
    return bridge_.LoadBridge.execute(model, bridge, 1.0, allow, preset).args[0]


class Says:
    """While it is open, the language model of a bridge says what a golden case gives, its row i."""

    def __init__(self, bridge, case, i):
        golden = load_file(GOLDEN / case / "expected.safetensors")
        states, mask = golden["hidden_states"], golden.get("mask")
        mask = torch.ones(states.shape[:2]) if mask is None else mask
        hidden = importlib.import_module("hyphen-pack.lavi_core.conditioning").HiddenStates
        self.said, self.encoder = hidden(states[i : i + 1], mask[i : i + 1].bool()), bridge.encoder

    def __enter__(self):
        self.hook = self.encoder.register_forward_hook(lambda *_: self.said)

    def __exit__(self, *_):
        self.hook.remove()


def encoded(bridge, case, i):
    """What Bridge Text Encode emits of row i: context, and what stands beside it."""
    with Says(bridge, case, i):
        return bridge_.BridgeTextEncode.execute(bridge, f"row {i}").args[0][0]


def near(found, wanted):
    assert found.shape == wanted.shape and (found - wanted).abs().max() <= 1e-5, (found - wanted).abs().max()


@check
def what_can_be_chosen_is_what_the_core_knows():
    known = importlib.import_module("hyphen-pack.lavi_core.importers").FOREIGN
    assert set(foreign_.PRESETS) == {"auto"} | {name for row in known.values() for name in row.presets}
    assert len(set(foreign_.PRESETS)) == len(foreign_.PRESETS)
    offered = folders_.names(*folders_.ADAPTERS, suffixes=folders_.ADAPTER_FILES)
    assert {ELLA, *ROUWEI, "bert.safetensors"} <= set(offered)


@check
def an_ella_file_gives_its_own_codes_numbers_at_each_of_its_timesteps():
    bridge, golden = loaded(ELLA, "states-t5"), load_file(GOLDEN / "ella" / "expected.safetensors")
    for i, timestep in enumerate(golden["timesteps"].tolist()):
        _, more = encoded(bridge, "ella", i)
        near(more[timed_.TIMED].at(timestep), golden["context"][i : i + 1])


@check
def an_ella_file_is_heard_at_the_samplers_true_noise():
    """At the levels of karras and normal, the context of each call is the core's at the timestep that the network is
    told; at the levels of the golden case's timesteps it is the golden one."""
    import comfy.sample
    import comfy.samplers

    bridge, golden = loaded(ELLA, "states-t5"), load_file(GOLDEN / "ella" / "expected.safetensors")
    sides = [[encoded(bridge, "ella", i)] for i in (1, 2)]
    importers = importlib.import_module("hyphen-pack.lavi_core.importers")
    adapters = importlib.import_module("hyphen-pack.lavi_core.adapters")
    read = importers.read_foreign(MODELS / "ella" / ELLA)
    core = adapters.build(read.config.adapter).eval()
    core.load_state_dict(read.adapter)
    model = vision_model_.load(MODELS / "diffusers" / "tiny-ella")
    for scheduler in ("karras", "normal"):
        patched = vision_.apply(model, bridge, 1.0)
        seen = Seen(patched)
        assert drawn(patched, bridge, SHAPE, "dpmpp_2m", scheduler, sides).isfinite().all()
        assert len({t for t, _ in seen.calls}) >= 3
        for t, rows in seen.calls:
            said = [Says(bridge, "ella", i).said for i in (1, 2)]
            wanted = [core(one, torch.tensor(t)).context for one in said]
            assert max(min(float((row - one).abs().max()) for one in wanted) for row in rows.split(1)) <= 1e-5
    for i, timestep in enumerate(golden["timesteps"].tolist()):
        side = [encoded(bridge, "ella", i)]
        patched = vision_.apply(model, bridge, 1.0)
        seen, sampling = Seen(patched), patched.get_model_object("model_sampling")
        sigmas = torch.stack([sampling.sigma(torch.tensor(timestep)), torch.tensor(0.0)])
        noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
        comfy.sample.sample_custom(
            patched, noise, 1.0, comfy.samplers.sampler_object("euler"), sigmas, side, side, torch.zeros_like(noise)
        )
        told, rows = seen.calls[0]
        assert told == timestep
        for row in rows.split(1):
            near(row, golden["context"][i : i + 1])


@check
def rouweis_files_give_their_own_codes_numbers_in_all_three_layouts():
    golden = load_file(GOLDEN / "rouwei" / "expected.safetensors")
    for name in ROUWEI:
        for preset in ("gemma", "t5gemma"):
            bridge = loaded(name, "states-gemma", preset)
            for i in range(3):
                context, more = encoded(bridge, "rouwei", i)
                near(context, golden["context"][i : i + 1])
                near(more["pooled_output"], golden["pooled"][i : i + 1])


@check
def a_file_of_qwen_sdxl_adapter_gives_its_own_codes_numbers():
    """Of a prompt without a token too, of which all padding is masked."""
    golden = load_file(GOLDEN / "qwen_sdxl" / "expected.safetensors")
    bridge = loaded("golden-qwen-sdxl.safetensors", "tiny-qwen35")
    for i in range(3):
        context, more = encoded(bridge, "qwen_sdxl", i)
        near(context, golden["context"][i : i + 1])
        near(more["pooled_output"], golden["pooled"][i : i + 1])


@check
def the_one_file_of_distill_t5_is_language_model_and_bridge():
    """With the host's own T5 tokenizer, 512 tokens of which padding is attended, as FluxPipeline gives them."""
    import transformers

    name, tensors = "DistillT5.safetensors", load_file(MODELS / "llm_adapters" / "DistillT5.safetensors")
    language = node_classes["LaViBridgeLoadLanguageModel"].execute(name, "float32").args[0]
    bridge = bridge_.LoadBridge.execute(language, name, 1.0, False).args[0]
    tokenizer = transformers.T5TokenizerFast.from_pretrained(folders_.host_tokenizers()["t5"])
    sizes: dict[str, Any] = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4, "vocab_size": 32128}
    theirs = transformers.T5EncoderModel(transformers.T5Config(**sizes, feed_forward_proj="gated-gelu")).eval()
    weights = {key.removeprefix("encoder."): tensor for key, tensor in tensors.items() if key.startswith("encoder.")}
    missing = theirs.load_state_dict(weights, strict=False).missing_keys
    assert set(missing) <= {"encoder.embed_tokens.weight"}, missing
    first, last = (tensors[f"final_projection.{i}.weight"].float() for i in (0, 3))
    pooled = [[torch.zeros(1, 77, 768), {"pooled_output": torch.ones(1, 768)}]]
    for prompt in (PROMPT, ""):
        ids = tokenizer(prompt, padding="max_length", max_length=512, truncation=True, return_tensors="pt").input_ids
        context, more = bridge_.BridgeTextEncode.execute(bridge, prompt, pooled=pooled).args[0][0]
        near(context, (theirs(ids)[0] @ first.T).relu() @ last.T)
        assert torch.equal(more["pooled_output"], pooled[0][1]["pooled_output"])


@check
def a_preset_that_the_sizes_leave_open_is_asked_for_and_a_bridge_needs_none():
    words = ["does not say how prompts become its states: name a preset, gemma or t5gemma"]
    refused(words, loaded, ROUWEI[0], "states-gemma")
    refused(words, foreign_.read_wanted, MODELS / "llm_adapters" / ROUWEI[0], "auto")
    refused(["the preset 'ella' was asked for", "is a bridge"], loaded, "bert.safetensors", "tiny-bert", "ella")
    refused(["unknown preset", "'gemma'", "ella"], loaded, ELLA, "states-t5", "gemma")
    assert loaded(ELLA, "states-t5").config.provenance["preset"] == "ella"


@check
def a_prompt_beyond_the_positions_of_an_adapter_is_cut_with_a_word():
    bridge = loaded(ROUWEI[0], "states-gemma", "t5gemma")
    with Lines() as lines:
        report = bridge_.BridgeTextEncode.execute(bridge, PROMPTS[2]).args[1]
    assert len(lines) == 1 and "cut off and not heard" in lines[0] and "chunk it" in lines[0], lines
    assert "full length" not in lines[0] and "cut" in report
    whole = bridge_.BridgeTextEncode.execute(bridge, PROMPTS[2], long_prompts="chunk").args[0][0][0]
    assert whole.shape[1] > 20 and whole.shape[1] % 20 == 0
    refused(["positions for 32"], bridge_.BridgeTextEncode.execute, bridge, PROMPTS[2], False, "full length")


@check
def models_of_another_width_or_kind_are_refused():
    path = MODELS / "ella" / ELLA
    sentence = ["made for google/flan-t5-xl (hidden 48)", "(hidden 32)", "load google/flan-t5-xl"]
    refused(sentence, loaded, ELLA, "tiny-t5")
    refused(sentence, loaded, ELLA, "tiny-t5", "auto", True)
    refused(sentence, search_.refuse_choice, foreign_.read_wanted(path, "auto"), "tiny-t5", False)
    refused(["made for google/flan-t5-xl (family t5)", "allow another model"], loaded, ELLA, "states-gemma")
    assert loaded(ELLA, "states-gemma", allow=True).config.language.family != "t5"
    bridge = loaded(ELLA, "states-t5")
    narrow = vision_model_.load(MODELS / "diffusers" / "tiny-flow")
    refused(["speaks to Stable Diffusion 1.5 in width 64", "listens in width 24"], vision_.apply, narrow, bridge, 1.0)


@check
def a_file_that_another_node_is_given_is_named():
    other = MODELS / "lavi_bridges" / "lies-here.safetensors"
    other.symlink_to(MODELS / "ella" / ELLA)
    try:
        assert loaded(other.name, "states-t5").config.adapter.kind == "timestep_resampler"
        refused(["is no bridge, but an ELLA connector, Load Bridge reads it"], lwm_.find, other.name)
    finally:
        other.unlink()


@check
def a_pickle_is_read_for_its_tensors_alone():
    file = MODELS / "ella" / "pickled.bin"
    torch.save(load_file(MODELS / "ella" / ELLA), file)
    try:
        near(encoded(loaded(file.name, "states-t5"), "ella", 1)[0], encoded(loaded(ELLA, "states-t5"), "ella", 1)[0])
        torch.save({"a": Path("x")}, file)
        refused(["holds more than tensors"], loaded, file.name, "states-t5")
    finally:
        file.unlink()


@check
def saved_once_it_is_a_bridge_that_says_all_of_it():
    bridge, file = loaded(ROUWEI[2], "states-gemma", "t5gemma"), MODELS / "lavi_bridges" / "saved-rouwei.safetensors"
    save_.saved(bridge, None).save(file)
    try:
        again = loaded(file.name, "states-gemma")
        made = again.config
        assert made.prompt == bridge.config.prompt and made.language.fingerprint
        assert made.provenance["preset"] == "t5gemma" and made.provenance["preset_source"]
        here, there = (encoded(one, "rouwei", 1) for one in (bridge, again))
        assert torch.equal(here[0], there[0])
        plain = [bridge_.BridgeTextEncode.execute(one, PROMPT).args[0][0][0] for one in (bridge, again)]
        assert torch.equal(*plain)
    finally:
        file.unlink()


@check
def a_long_prompt_in_another_template_is_cut_to_what_the_adapter_hears():
    """Of its own template 27 tokens do not reach the adapter, which has 512 places."""
    bridge = loaded(ROUWEI[0], "states-gemma", "gemma")
    long = "two elephants in the forest " * 200
    for template in ("", "{prompt}", "see {prompt}"):
        context = bridge_.BridgeTextEncode.execute(bridge, long, template=template).args[0][0][0]
        assert context.isfinite().all(), template


@check
def rouweis_adapters_draw_on_a_unet_that_takes_their_pooled_vector():
    bridge, model = loaded(ROUWEI[0], "states-gemma", "t5gemma"), vision_model_.load(MODELS / "diffusers/tiny-rouwei")
    found = drawn(vision_.apply(model, bridge, 1.0), bridge, SHAPE)
    assert found.isfinite().all() and found.std() > 0
    ella = vision_model_.load(MODELS / "diffusers" / "tiny-ella")
    refused(["with a pooled vector of width 40", "takes no pooled vector"], vision_.apply, ella, bridge, 1.0)
