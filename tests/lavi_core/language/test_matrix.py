"""Many families of language models, tiny and random: states as transformers has them, or a refusal of one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.lavi_core.prompt import PromptRecipe

from ..conftest import write_tokenizer

PROMPTS = ("a red circle", "two elephants in the forest , a rabbit in spring")
IDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES: dict[str, Any] = {
    **IDS,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 130,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
GPT: dict[str, Any] = {**IDS, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 130}
PAIR: dict[str, Any] = {
    **IDS,
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 130,
}
# model class -> what its config takes beside the vocabulary
FAMILIES: dict[str, dict[str, Any]] = {
    "BertModel": SIZES,
    "RobertaModel": SIZES,
    "XLMRobertaModel": SIZES,
    "CamembertModel": SIZES,
    "ElectraModel": {**SIZES, "embedding_size": 32},
    "DistilBertModel": {"dim": 32, "hidden_dim": 64, "n_layers": 3, "n_heads": 4, "max_position_embeddings": 130},
    "AlbertModel": {**SIZES, "embedding_size": 32},
    "MPNetModel": {**SIZES, "pad_token_id": 1, "bos_token_id": 0},
    "Data2VecTextModel": SIZES,
    "RobertaPreLayerNormModel": SIZES,
    "XLMRobertaXLModel": SIZES,
    "XmodModel": {**SIZES, "default_language": "en_XX"},
    "CamembertForMaskedLM": SIZES,
    "ConvBertModel": {**SIZES, "embedding_size": 32},
    "MobileBertModel": {**SIZES, "embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32},
    "FNetModel": SIZES,
    "NystromformerModel": SIZES,
    "SqueezeBertModel": {**SIZES, "embedding_size": 32},
    "DebertaModel": SIZES,
    "DebertaV2Model": SIZES,
    "LayoutLMModel": SIZES,
    "MegatronBertModel": SIZES,
    "ErnieModel": SIZES,
    "RemBertModel": {**SIZES, "input_embedding_size": 32, "output_embedding_size": 32},
    "RoFormerModel": {**SIZES, "embedding_size": 32},
    "SplinterModel": SIZES,
    "BigBirdModel": {**SIZES, "attention_type": "original_full"},
    "MraModel": SIZES,
    "YosoModel": SIZES,
    "IBertModel": SIZES,
    "EsmModel": {**SIZES, "mask_token_id": 3, "token_dropout": False},
    "ModernBertModel": {**SIZES, "cls_token_id": 1, "sep_token_id": 2, "local_attention": 16},
    "CLIPTextModel": SIZES,
    "T5EncoderModel": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_heads": 4, "pad_token_id": 0},
    "MT5EncoderModel": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_heads": 4, "pad_token_id": 0},
    "UMT5EncoderModel": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_heads": 4, "pad_token_id": 0},
    "BartModel": PAIR,
    "MBartModel": PAIR,
    "PegasusModel": PAIR,
    "M2M100Model": PAIR,
    "BlenderbotSmallModel": PAIR,
    "LlamaModel": GROUPED,
    "MistralModel": GROUPED,
    "Qwen2Model": GROUPED,
    "Qwen3Model": {**GROUPED, "head_dim": 8},
    "GemmaModel": {**GROUPED, "head_dim": 8},
    "Gemma2Model": {**GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8},
    "Gemma3TextModel": {**GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8},
    "Olmo2Model": GROUPED,
    "SmolLM3Model": GROUPED,
    "PhiModel": GROUPED,
    "Phi3Model": GROUPED,
    "StableLmModel": GROUPED,
    "Starcoder2Model": GROUPED,
    "GraniteModel": GROUPED,
    "CohereModel": GROUPED,
    "OlmoModel": GROUPED,
    "GlmModel": {**GROUPED, "head_dim": 8},
    "HeliumModel": {**GROUPED, "head_dim": 8},
    "NemotronModel": GROUPED,
    "GPTNeoXModel": SIZES,
    "GPT2Model": GPT,
    "GPTJModel": {**GPT, "rotary_dim": 8},
    "GPTNeoModel": {
        **IDS,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "max_position_embeddings": 130,
    },
    "CodeGenModel": {**GPT, "rotary_dim": 8},
    "BloomModel": {**IDS, "hidden_size": 32, "n_layer": 3, "n_head": 4},
    "FalconModel": {**IDS, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4},
    "MptModel": {"d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 130},
    "OPTModel": {
        **IDS,
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "ffn_dim": 64,
        "max_position_embeddings": 130,
    },
    "XGLMModel": {
        **IDS,
        "d_model": 32,
        "num_layers": 3,
        "attention_heads": 4,
        "ffn_dim": 64,
        "max_position_embeddings": 130,
    },
    "MambaModel": {**IDS, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 8},
    "RwkvModel": {**IDS, "hidden_size": 32, "num_hidden_layers": 3, "attention_hidden_size": 32},
}
LEFT, COMPANY, ENTRIES = "padded left", "in company", {"entry", "mean"}
# States that depend on how much padding follows, though it is masked.
BY_PADDING = ("ConvBertModel", "MobileBertModel", "FNetModel", "NystromformerModel", "YosoModel")
# Positions of their own, or none that can be given: padding on the left moves them.
NO_LEFT = (
    *("MPNetModel", "Data2VecTextModel", "RobertaPreLayerNormModel", "XLMRobertaXLModel", "XmodModel", "RoFormerModel"),
    *("MraModel", "IBertModel", "EsmModel", "BartModel", "MBartModel", "PegasusModel", "M2M100Model", "BloomModel"),
    *("BlenderbotSmallModel", "MptModel"),
)
# What is refused; whatever else is refused is a fault.
REFUSED: dict[str, set[str]] = {
    **{name: {LEFT} for name in NO_LEFT},
    **{name: {LEFT, COMPANY} for name in BY_PADDING},
    "AlbertModel": ENTRIES,  # one layer for all
    "SqueezeBertModel": ENTRIES,  # another order of dimensions
    "MambaModel": {*ENTRIES, LEFT},  # its entries begin behind the first layer
    "RwkvModel": {*ENTRIES, LEFT},
}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    folder = tmp_path_factory.mktemp("tokenizer")
    return folder, len(write_tokenizer(folder))


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory, vocabulary) -> Any:
    made: dict[str, TextEncoder] = {}

    def make(name: str) -> TextEncoder:
        if name not in made:
            kind = getattr(hf, name, None)
            if kind is None:
                pytest.skip(f"this transformers has no {name}")
            folder = tmp_path_factory.mktemp(name)
            write_tokenizer(folder)
            torch.manual_seed(0)
            model = kind(kind.config_class(vocab_size=vocabulary[1], **FAMILIES[name]))
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim > 1:
                        parameter.normal_(std=0.2)
            model.save_pretrained(folder)
            made[name] = TextEncoder.load(folder)
        return made[name]

    return make


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm().clamp(min=1e-12))


def own_states(encoder: TextEncoder, prompt: str) -> list[torch.Tensor]:
    """transformers' own entries of one prompt without padding, [1 T D] each; the last is last_hidden_state."""
    tokens = encoder.tokenize([prompt], PromptRecipe(padding="longest", max_length=60, vision_mask=True))
    with torch.no_grad():
        output = encoder.model(input_ids=tokens.ids, attention_mask=tokens.mask.long(), output_hidden_states=True)
    return [*(output.hidden_states or ())[:-1], output.last_hidden_state]


def states(encoder: TextEncoder, prompts: Any, **recipe: Any) -> Any:
    made = PromptRecipe(max_length=60, vision_mask=True, **recipe)
    with torch.no_grad():
        return encoder(encoder.tokenize(list(prompts), made), made)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family(name: str, encoders):
    encoder = encoders(name)
    outcomes: dict[str, str] = {}
    own = own_states(encoder, PROMPTS[0])
    count = len(own) - 1
    for what, recipe in {
        "last": {"padding": "longest"},
        "padded right": {},
        COMPANY: {"padding": "longest"},
        LEFT: {"padding_side": "left"},
        **{f"entry {k}": {"padding": "longest", "hidden_states": k} for k in (*range(count), -2)},
        "mean": {"padding": "longest", "hidden_states": "normalized_mean"},
    }.items():
        prompts = PROMPTS if what == COMPANY else PROMPTS[:1]
        try:
            found = states(encoder, prompts, **recipe)
        except ValueError as error:
            assert len(str(error).splitlines()) == 1
            outcomes[what] = "no"
            continue
        real = found.states[0][found.mask[0]]
        which = recipe.get("hidden_states", "last")
        if which == "normalized_mean":
            continue
        expected = own[-1 if which == "last" else which][0]
        outcomes[what] = "right" if relative(real, expected) < 1e-4 else f"wrong by {relative(real, expected):.3g}"
    wrong = {what: outcome for what, outcome in outcomes.items() if outcome.startswith("wrong")}
    if name in BY_PADDING:  # always to the same length, in training and afterwards: what transformers gives for it
        assert wrong.pop("padded right") and outcomes[COMPANY] == "no"
        tokens = encoder.tokenize(PROMPTS[:1], PromptRecipe(max_length=60))
        with torch.no_grad():
            expected = encoder.model(input_ids=tokens.ids, attention_mask=tokens.mask.long()).last_hidden_state
        assert relative(states(encoder, PROMPTS[:1]).states, expected) < 1e-5
    assert encoder.ignores_padding("right") == (name not in BY_PADDING)
    assert not wrong, wrong
    assert outcomes["last"] == "right"
    refused = {
        what.partition(" ")[0] if what.startswith("entry") else what for what in outcomes if outcomes[what] == "no"
    }
    assert refused == REFUSED.get(name, set())


def test_as_many_as_were_asked_for():
    assert len(FAMILIES) > 60


def test_hooks_of_others_can_be_removed_after_a_probe(encoders):
    """A live LoRA is a hook: who put it in takes it out, whatever was found out meanwhile."""
    encoder = encoders("GPT2Model")
    seen: list[int] = []
    handle = encoder.layers()[0].register_forward_hook(lambda *_: seen.append(1))
    encoder._layers_differ.clear()
    states(encoder, PROMPTS[:1], hidden_states=1)
    handle.remove()
    seen.clear()
    states(encoder, PROMPTS[:1])
    assert not seen
