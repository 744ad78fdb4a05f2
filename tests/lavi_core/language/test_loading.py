"""What is loaded, and every refusal: one sentence that names the reason and the way out."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.lavi_core.language.folder import left_beside
from lavi_bridge.lavi_core.prompt import PromptRecipe

from .tiny_families import tiny_folders


@pytest.fixture
def folder(language_folder, tmp_path):
    """A copy that a test may spoil."""
    copy = tmp_path / "model"
    shutil.copytree(language_folder("bert"), copy)
    return copy


def refuses(path, message):
    with pytest.raises(ValueError, match=message) as caught:
        TextEncoder.load(path)
    assert len(str(caught.value).splitlines()) == 1


def test_not_a_model(tmp_path):
    refuses(tmp_path / "absent", "absent is not a Hugging Face model folder, .* or a .gguf file; nothing lies there")
    refuses(tmp_path, "has no config.json")
    (tmp_path / "config.json").write_text("{")
    refuses(tmp_path, "config.json is not readable JSON")
    (tmp_path / "x.gguf").write_bytes(b"GGML....")
    refuses(tmp_path / "x.gguf", "x.gguf is not a GGUF file")
    (tmp_path / "x.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    refuses(tmp_path / "x.gguf", "x.gguf is cut short or damaged")


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_a_lora_beside_the_weights_is_left_there(kind, tmp_path_factory, caplog):
    """Of a Mixtral the files are read by transformers, which adds such a LoRA where peft is installed."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    path = tiny_folders(tmp_path_factory)(kind)
    before = TextEncoder.load(path)
    lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(AutoModel.from_pretrained(path), lora).save_pretrained(path)  # type: ignore[arg-type]
    assert not [r for r in caplog.records if "lavi_bridge" in r.name]
    after = TextEncoder.load(path)
    ids = torch.arange(5, 12)[None]
    with torch.no_grad():
        assert torch.equal(after.model(input_ids=ids).last_hidden_state, before.model(input_ids=ids).last_hidden_state)
    assert [name for name, _ in after.model.named_parameters()] == [name for name, _ in before.model.named_parameters()]
    assert after.config == before.config
    assert [r.getMessage() for r in caplog.records if "lavi_bridge" in r.name] == [left_beside(path)]
    for name in ("config.json", "model.safetensors"):
        (path / name).unlink()
    refuses(path, r"holds a LoRA \(adapter_config.json\) and no model: give the language model")


def test_remote_code(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mine", "auto_map": {"AutoModel": "x.Y"}}))
    refuses(folder, r"needs its own Python code \(auto_map in config.json\), which this pack does not run")
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mine"}))
    refuses(folder, "does not know model_type 'mine'; update transformers")
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "x.Y"}}))
    assert TextEncoder.load(folder).config.family == "bert"  # transformers' own class, no code from the folder


def test_no_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    refuses(folder, "has no tokenizer .* copy the model's tokenizer files there")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    refuses(folder, "has no tokenizer|cannot be loaded")
    (folder / "tokenizer.json").write_text("{}")
    refuses(folder, "the tokenizer in .* cannot be loaded")


def test_a_diffusers_folder(folder, tmp_path):
    """text_encoder_2 and tokenizer_2 side by side."""
    (tmp_path / "tokenizer_2").mkdir()
    for file in folder.glob("tokenizer*"):
        file.rename(tmp_path / "tokenizer_2" / file.name)
    folder.rename(tmp_path / "text_encoder_2")
    encoder = TextEncoder.load(tmp_path / "text_encoder_2")
    assert encoder.config.model_id == f"{tmp_path.name}/text_encoder_2"


def test_weights(folder):
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    refuses(folder, "model.safetensors is cut short or damaged")
    weights.unlink()
    refuses(folder, "has no model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(whole)
    refuses(folder, r"only pickled weights \(.bin\), which can run code; save the model again")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00001.safetensors"}}')
    refuses(folder, "lacks model-00001-of-00001.safetensors, which model.safetensors.index.json lists")


@pytest.mark.parametrize(
    ("packing", "method"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"load_in_8bit": True}, "bitsandbytes"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
    ],
)
@pytest.mark.parametrize("inside", [None, "text_config"])
def test_weights_that_another_library_has_packed(folder, packing, method, inside):
    """Told before weights or that library are asked for: there are none here."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **_in(inside, {"quantization_config": packing})}))
    (folder / "model.safetensors").unlink()
    message = rf"model is quantised by {method} \(.*full-precision folder, .* 8-bit or 4-bit, or a \.gguf file of it"
    refuses(folder, message)
    with pytest.raises(ValueError, match=message):
        TextEncoder.skeleton(folder)


def _in(key, value):
    return value if key is None else {key: value}


def test_missing_tensors_are_never_drawn_at_random(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    gone = next(k for k in tensors if k.endswith("layer.1.attention.self.query.weight"))
    save_file({k: v for k, v in tensors.items() if k != gone}, folder / "model.safetensors", {"format": "pt"})
    refuses(folder, r"lack 1 tensors of BertModel, first encoder.layer.1.attention.self.query.weight")


def test_shapes_that_do_not_fit_the_config(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    refuses(folder, "are of other sizes than its config.json says: fetch both from one model")


@pytest.mark.parametrize("kind", ["bert", "t5", "llama", "clip"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_config_that_counts_fewer_layers(language_folder, tmp_path, kind, stream):
    copy = tmp_path / "model"
    shutil.copytree(language_folder(kind), copy)
    config = json.loads((copy / "config.json").read_text())
    key = "num_layers" if kind == "t5" else "num_hidden_layers"
    (copy / "config.json").write_text(json.dumps(config | {key: config[key] - 1}))
    with pytest.raises(ValueError, match=r"layers that their config does not count \(1, from .*\.2\..* on\), .*: give"):
        TextEncoder.load(copy, stream=stream)
    with pytest.raises(ValueError, match="does not count"):
        TextEncoder.skeleton(copy)


def test_a_shorter_config_is_seen_where_layers_hold_more_than_parameters(language_folder, tmp_path):
    """As older files have it: the mask of GPT-2's attention, the frequencies of Llama's rotary positions."""
    from safetensors.torch import load_file, save_file

    for kind, key, buffer in (
        ("gpt2", "n_layer", "transformer.h.{}.attn.bias"),
        ("llama", "num_hidden_layers", "model.layers.{}.self_attn.rotary_emb.inv_freq"),
    ):
        copy = tmp_path / kind
        shutil.copytree(language_folder(kind), copy)
        tensors = load_file(copy / "model.safetensors")
        prefix = "" if any(name.startswith("h.") for name in tensors) else "transformer."
        names = [buffer.format(i).removeprefix("transformer." if not prefix else "") for i in range(3)]
        save_file(
            tensors | {name: torch.ones(1, 1, 4, 4) for name in names}, copy / "model.safetensors", {"format": "pt"}
        )
        expected = TextEncoder.load(language_folder(kind)).config.fingerprint
        assert TextEncoder.load(copy).config.fingerprint == expected
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(config | {key: 2}))
        refuses(copy, r"layers that their config does not count \(1, from ")


def test_a_layer_that_guesses_ahead_is_left_out(language_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "model"
    shutil.copytree(language_folder("llama"), copy)
    tensors = load_file(copy / "model.safetensors")
    more = {k.replace("layers.2", "layers.3"): v.clone() for k, v in tensors.items() if "layers.2." in k}
    more |= {"model.layers.3.eh_proj.weight": torch.zeros(32, 64)}  # as DeepSeek-V3 and GLM-4.5 have one
    save_file(tensors | more, copy / "model.safetensors", {"format": "pt"})
    assert TextEncoder.load(copy).config.fingerprint == TextEncoder.load(language_folder("llama")).config.fingerprint


def test_nothing_is_said_of_heads_that_are_left_out(language_folder, caplog):
    import logging

    logger = logging.getLogger("transformers")
    level = logger.level
    TextEncoder.load(language_folder("llama"))
    assert not caplog.records and logger.level == level


def test_dtype(language_folder):
    folder = language_folder("llama")
    assert next(TextEncoder.load(folder).parameters()).dtype == torch.float32
    half = TextEncoder.load(folder, dtype=torch.bfloat16)
    assert next(half.parameters()).dtype == torch.bfloat16
    recipe = PromptRecipe(max_length=10)
    assert half(half.tokenize(["sea"], recipe), recipe).states.dtype == torch.bfloat16


def test_shards(language_folder, tmp_path):
    import transformers

    source = language_folder("llama")
    model = transformers.AutoModelForCausalLM.from_pretrained(source)
    shutil.copytree(source, tmp_path / "m")
    (tmp_path / "m/model.safetensors").unlink()
    model.save_pretrained(tmp_path / "m", max_shard_size="30KB")
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 1
    assert TextEncoder.load(tmp_path / "m").config.fingerprint == TextEncoder.load(source).config.fingerprint
