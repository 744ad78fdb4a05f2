"""Many families of language models, tiny and random: states as transformers has them, or a refusal of one sentence.

All of transformers' families, and more ways to load them: tests/benchmarks/language_models.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.lavi_core.prompt import PromptRecipe

from ..conftest import write_tokenizer
from .examination import LENGTH, PROMPTS, examine, states
from .tiny_families import tiny_config, tiny_model

FAMILIES = (
    *("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert", "albert", "mpnet", "data2vec-text"),
    *("roberta-prelayernorm", "xlm-roberta-xl", "xmod", "convbert", "mobilebert", "fnet", "nystromformer"),
    *("squeezebert", "deberta", "deberta-v2", "layoutlm", "megatron-bert", "ernie", "rembert", "roformer", "splinter"),
    *("big_bird", "yoso", "ibert", "esm", "modernbert", "clip_text_model", "t5", "mt5", "umt5", "bart", "mbart"),
    *("pegasus", "m2m_100", "blenderbot-small", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"),
    *("olmo2", "smollm3", "phi", "phi3", "stablelm", "starcoder2", "granite", "cohere", "olmo", "glm", "helium"),
    *("nemotron", "gpt_neox", "gpt2", "gptj", "gpt_neo", "codegen", "bloom", "falcon", "mpt", "opt", "xglm", "mamba"),
    *("rwkv", "xlm", "flaubert", "xlnet", "led", "longformer", "funnel", "dory", "hrm_text", "gemma3n_text"),
    *("gemma4_text", "altclip", "embedding_gemma2_text", "siglip", "clip", "paligemma", "qwen2_vl", "deepseek_v3"),
    *("mixtral", "gpt_oss", "pegasus_x", "longt5", "luke", "ctrl", "biogpt", "qwen3_next", "jamba", "mamba2"),
    *("zamba2", "recurrent_gemma", "lfm2", "llama4_text", "cpmant", "tapas", "prophetnet", "reformer"),
)
LEFT, COMPANY, MEANS = "padded left", "in company", {"last_before_norm", "normalized_mean"}
LAYERS = {"entry", *MEANS}
MOVED, PADDED, WINDOWED = {LEFT}, {LEFT, COMPANY}, {*LAYERS, LEFT}
WIDER = {"last", "longer", "padded right", "unmasked", "batch", COMPANY, LEFT, "all positions"}
# What is refused; whatever else is refused is a fault.
REFUSED: dict[str, set[str]] = {
    # positions of their own, or none that can be given: padding on the left moves them
    **dict.fromkeys(("mpnet", "data2vec-text", "roberta-prelayernorm", "xlm-roberta-xl", "xmod", "roformer"), MOVED),
    **dict.fromkeys(("ibert", "esm", "bart", "mbart", "pegasus", "m2m_100", "blenderbot-small"), MOVED),
    **dict.fromkeys(("bloom", "mpt", "longt5", "luke", "recurrent_gemma", "prophetnet"), MOVED),
    # states that depend on how much padding follows, though it is masked
    **dict.fromkeys(("convbert", "mobilebert", "fnet", "nystromformer", "yoso", "paligemma"), PADDED),
    # one layer for all, layers that run in loops, another order of dimensions, several streams
    **dict.fromkeys(("albert", "squeezebert", "dory", "hrm_text", "gemma3n_text"), LAYERS),
    # entries that begin behind the first layer, are padded to a window, or are tuples
    **dict.fromkeys(("mamba", "mamba2", "rwkv", "xlnet", "led", "longformer", "pegasus_x"), WINDOWED),
    "cpmant": {*LAYERS, LEFT, COMPANY},
    "funnel": {*LAYERS, LEFT, COMPANY, "unmasked"},
    **dict.fromkeys(("xlm", "flaubert"), MEANS),  # the list is one of attentions
    **dict.fromkeys(("altclip", "embedding_gemma2_text", "reformer"), WIDER),  # the last states have another width
}


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, TextEncoder] = {}
    work = tmp_path_factory.mktemp("families")

    def make(name: str) -> tuple[TextEncoder, Path]:
        folder = work / name
        if name not in made:
            if name not in hf.CONFIG_MAPPING:
                pytest.skip(f"this transformers has no {name}")
            size = len(write_tokenizer(folder))
            tiny_model(name, size, head=True).save_pretrained(folder)
            made[name] = TextEncoder.load(folder)
        return made[name], folder

    return make


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family(name: str, encoders):
    outcomes = examine(*encoders(name))
    faults = {what: outcome for what, outcome in outcomes.items() if outcome.kind in ("wrong", "raw")}
    assert not faults, faults
    refused = {
        what.partition(" ")[0] if what.startswith("entry") else what
        for what in outcomes
        if outcomes[what].kind == "refused"
    }
    assert refused == REFUSED.get(name, set())


def test_a_model_that_attends_to_nothing_without_its_kernel_is_refused(tmp_path):
    tiny_model("mra", len(write_tokenizer(tmp_path)), head=True).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"attends by a kernel .* and without it to nothing; take another"):
        TextEncoder.load(tmp_path)


def test_as_many_as_were_asked_for():
    assert len(set(FAMILIES)) > 100


def test_a_prompt_whose_company_turns_its_positions_is_refused(tmp_path):
    """longrope takes other frequencies for a row beyond the length it was first trained with."""
    size = len(write_tokenizer(tmp_path))
    longer = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    longer |= {"original_max_position_embeddings": 16, "factor": 8.0}
    config = tiny_config("llama", size).to_dict() | {"rope_parameters": longer}
    hf.LlamaModel(hf.LlamaConfig.from_dict(config)).save_pretrained(tmp_path)
    encoder = TextEncoder.load(tmp_path)
    with pytest.raises(
        ValueError, match=r"otherwise in a batch of more than 16 tokens, max_length is 60; lower it, or"
    ):
        states(encoder, PROMPTS, padding="longest")
    assert states(encoder, PROMPTS, padding="longest", max_length=16).states.shape[1] <= 16
    assert states(encoder, PROMPTS).states.shape[1] == 60


def test_hooks_of_others_can_be_removed_after_a_probe(encoders):
    """A live LoRA is a hook: who put it in takes it out, whatever was found out meanwhile."""
    encoder, _ = encoders("gpt2")
    seen: list[int] = []
    handle = encoder.layers()[0].register_forward_hook(lambda *_: seen.append(1))
    encoder._layers_differ.clear()
    states(encoder, PROMPTS[:1], hidden_states="normalized_mean")
    handle.remove()
    seen.clear()
    states(encoder, PROMPTS[:1])
    assert not seen


@pytest.mark.parametrize("name", ["convbert", "fnet", "mobilebert", "nystromformer"])
def test_padding_that_shapes_the_states_is_put_back_or_refused(name: str, encoders):
    """Their states depend on how much masked padding follows: trimmed tokens, as a trainer has them, say the same."""
    encoder, _ = encoders(name)
    recipe = PromptRecipe(max_length=LENGTH, vision_mask=True)
    tokens = encoder.tokenize(PROMPTS[:1], recipe)
    trimmed = tokens.trimmed(recipe)
    assert trimmed.ids.shape[1] < LENGTH
    with torch.no_grad():
        short, long = encoder(trimmed, recipe), encoder(tokens, recipe)
    assert short.states.shape[1] == trimmed.ids.shape[1]
    torch.testing.assert_close(short.states[short.mask], long.states[long.mask])
    with pytest.raises(ValueError, match="depend on how much padding follows, though it is masked; set padding = "):
        states(encoder, PROMPTS[:1], padding="longest")  # alone, too: it would be another prompt in company
