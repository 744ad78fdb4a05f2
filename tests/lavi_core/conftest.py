"""Tiny language models: transformers' own classes with random weights, and a real tokenizer trained on a few words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

WORDS = (
    "a red circle left of a blue square . two elephants in the forest , a rabbit in spring : best quality "
    "a glass jar full of colorful candy on a wooden table in a cozy kitchen sea picture describe the image"
)
LAYERS = 3
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 130,
}


def write_tokenizer(folder: Path, *, bos: bool = True, pad: bool = True) -> Any:
    """A byte-level BPE with <s> ... </s> around a text (or only </s>), saved into ``folder``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        [WORDS], trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if bos else "$A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>" if pad else None
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def tiny_config(kind: str, vocab: int) -> Any:
    """A transformers config of three layers, width 32."""
    import transformers as hf

    ids: dict[str, Any] = {"vocab_size": vocab, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    short: dict[str, Any] = {"d_model": 32, "encoder_layers": LAYERS, "decoder_layers": 1, "encoder_attention_heads": 4}
    short |= {
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_position_embeddings": 130,
    }
    modern: dict[str, Any] = {
        "cls_token_id": 1,
        "sep_token_id": 2,
        "global_attn_every_n_layers": 2,
        "local_attention": 16,
    }
    t5: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": LAYERS, "num_heads": 4}
    build: dict[str, Callable[[], Any]] = {
        "bert": lambda: hf.BertConfig(**SIZES, **ids),
        "roberta": lambda: hf.RobertaConfig(**SIZES, **ids),
        "modernbert": lambda: hf.ModernBertConfig(**SIZES, **ids, **modern),
        "t5": lambda: hf.T5Config(**t5, num_decoder_layers=1, vocab_size=vocab, pad_token_id=0, eos_token_id=2),
        "clip": lambda: hf.CLIPTextConfig(**SIZES, **ids),
        "bart": lambda: hf.BartConfig(**short, **ids),
        "mbart": lambda: hf.MBartConfig(**short, **ids),
        "llama": lambda: hf.LlamaConfig(**SIZES, **ids, num_key_value_heads=2),
        "qwen2": lambda: hf.Qwen2Config(**SIZES, **ids, num_key_value_heads=2),
        "gpt_neox": lambda: hf.GPTNeoXConfig(**SIZES, **ids),
        "gpt2": lambda: hf.GPT2Config(n_embd=32, n_layer=LAYERS, n_head=4, n_positions=130, **ids),
    }
    return build[kind]()


def tiny_model(kind: str, vocab: int) -> Any:
    """What a user's folder holds: for decoders the model with its head, for encoder-decoders both halves."""
    import transformers as hf

    torch.manual_seed(0)
    config = tiny_config(kind, vocab)
    heads = {
        "bert": hf.BertForMaskedLM,
        "roberta": hf.RobertaForMaskedLM,
        "modernbert": hf.ModernBertForMaskedLM,
        "t5": hf.T5ForConditionalGeneration,
        "clip": hf.CLIPTextModel,
        "bart": hf.BartForConditionalGeneration,
        "mbart": hf.MBartForConditionalGeneration,
        "llama": hf.LlamaForCausalLM,
        "qwen2": hf.Qwen2ForCausalLM,
        "gpt_neox": hf.GPTNeoXForCausalLM,
        "gpt2": hf.GPT2LMHeadModel,
    }
    model = heads[kind](config).eval()
    for parameter in model.parameters():  # transformers' 0.02 makes every layer almost the identity
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="session")
def language_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """kind -> a Hugging Face folder of that kind, made once a session."""
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind) / f"tiny-{kind}"
            tokenizer = write_tokenizer(folder, bos=kind != "t5", pad=kind != "llama")
            tiny_model(kind, len(tokenizer)).save_pretrained(folder, safe_serialization=True)
            made[kind] = folder
        return made[kind]

    return make
