"""One print for copies of one model, another for another model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from lavi_bridge.lavi_core import fingerprint
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.lavi_core.language.folder import weight_files


def test_a_cast_copy_has_the_same_print(language_folder):
    prints = {
        TextEncoder.load(language_folder("llama"), dtype=d).config.fingerprint
        for d in (None, torch.float16, torch.bfloat16)
    }
    assert len(prints) == 1


def test_underflow_keeps_the_print():
    tiny = torch.nn.Linear(8, 8)
    tiny.weight.data = tiny.weight.data * 1e-12
    assert fingerprint.weights_fingerprint(tiny) == fingerprint.weights_fingerprint(tiny.half())


def test_another_model_has_another_print(language_folder):
    encoder = TextEncoder.load(language_folder("llama"))
    before = encoder.config.fingerprint
    assert before != TextEncoder.load(language_folder("qwen2")).config.fingerprint
    weights = fingerprint.weights_fingerprint(encoder.model)
    weight = encoder.model.get_submodule("layers.1.self_attn.q_proj").weight
    weight.data += 0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    assert fingerprint.weights_fingerprint(encoder.model) != weights


def test_another_vocabulary_has_another_print(language_folder):
    tokenizer = TextEncoder.load(language_folder("llama")).tokenizer
    before = fingerprint.vocabulary_fingerprint(tokenizer)
    tokenizer.add_tokens(["<new>"])
    assert fingerprint.vocabulary_fingerprint(tokenizer) != before


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_neither_names_nor_order_matter(order):
    torch.manual_seed(0)
    layers = [torch.nn.Linear(4, 6), torch.nn.Conv2d(6, 4, 1)]
    expected = fingerprint.weights_fingerprint(torch.nn.Sequential(*layers))
    other = torch.nn.ModuleDict({f"x{i}": layers[i] for i in order})
    layers[1].weight.data = layers[1].weight.data.reshape(4, 6)
    assert fingerprint.weights_fingerprint(other) == expected


@pytest.mark.parametrize("kind", ["t5", "bert", "clip", "llama", "gpt2", "qwen2"])
def test_the_files_alone_have_the_print_of_the_loaded_model(language_folder, kind):
    """The folders hold heads and decoders too, under the names of the larger model."""
    skeleton = TextEncoder.skeleton(language_folder(kind))
    assert next(skeleton.parameters()).is_meta
    assert skeleton.config == TextEncoder.load(language_folder(kind)).config
    assert skeleton.lora_sites() == TextEncoder.load(language_folder(kind)).lora_sites()


def test_shards_have_the_print_of_the_whole(language_folder, tmp_path):
    whole = language_folder("t5")
    model = transformers.T5ForConditionalGeneration.from_pretrained(whole)
    transformers.AutoTokenizer.from_pretrained(whole).save_pretrained(tmp_path)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(weight_files(tmp_path)) > 2
    assert TextEncoder.skeleton(tmp_path).config.fingerprint == TextEncoder.skeleton(whole).config.fingerprint


def test_the_text_half_of_a_clip_is_told_from_its_pictures(language_folder, tmp_path):
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    tokenizer = transformers.AutoTokenizer.from_pretrained(language_folder("clip"))
    text = transformers.CLIPTextConfig(**sizes, vocab_size=len(tokenizer), eos_token_id=2)
    pictures = transformers.CLIPVisionConfig(**sizes, image_size=32, patch_size=16)
    torch.manual_seed(0)
    both = transformers.CLIPModel(transformers.CLIPConfig(text_config=text.to_dict(), vision_config=pictures.to_dict()))
    both.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert TextEncoder.skeleton(tmp_path).config == TextEncoder.load(tmp_path).config


def test_no_print_without_the_weights(language_folder, tmp_path):
    folder = language_folder("llama")
    for file in folder.iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    config = TextEncoder.skeleton(tmp_path).config
    assert config.fingerprint is None
    with_print = TextEncoder.skeleton(folder).config
    assert (config.hidden_size, config.vocab_size) == (with_print.hidden_size, with_print.vocab_size)


def test_long_rows_and_kernels_are_sampled_alike(tmp_path):
    """A row longer than the sample, one shorter, a convolution, a matrix smaller than the sample."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(5000, 3), torch.nn.Linear(7, 901), torch.nn.Conv2d(48, 37, 3), torch.nn.Linear(3, 5)
    )
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    with torch.device("meta"):
        skeleton = torch.nn.Sequential(*(type(m)(*_sizes(m)) for m in model))
    files = [tmp_path / "model.safetensors"]
    assert fingerprint.files_fingerprint(skeleton, files) == fingerprint.weights_fingerprint(model)
    with torch.device("meta"):
        other = torch.nn.Sequential(torch.nn.Linear(5000, 4))
    assert fingerprint.files_fingerprint(other, files) is None


def test_only_the_sampled_rows_are_read():
    read = []

    class Part:
        def __getitem__(self, rows):
            read.append(rows.stop - rows.start)
            return torch.ones(rows.stop - rows.start, 512)

    fingerprint._slice_fingerprint(Part(), (32000, 512))
    assert read == [2, 2]


def _sizes(module):
    if isinstance(module, torch.nn.Conv2d):
        return module.in_channels, module.out_channels, 3
    return module.in_features, module.out_features
