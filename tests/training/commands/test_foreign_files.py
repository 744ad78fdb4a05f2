"""Other projects' adapters by the command line: imported, heard, exported; the text path is that of their own code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lavi_bridge.lavi_core.checkpoint import BridgeCheckpoint, read_config
from lavi_bridge.lavi_core.importers.rouwei import PRESETS
from lavi_bridge.training.commands import main
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
ELLA = GOLDEN / "connectors" / "ella" / "adapter.safetensors"
ROUWEI = GOLDEN / "connectors" / "rouwei" / "adapter.safetensors"
LONG = " ".join(["elephants in the forest"] * 20)
PROMPTS = ["a rabbit, forest in spring", "", "sea."]
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]


def gemma_tokenizer(folder: Path, side: str) -> Any:
    """As Gemma's: <bos> before a text, none of its special tokens after it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        [PRESETS["gemma"].prompt.template],  # so that few tokens make a prompt of the little adapter's 32
        trainers.BpeTrainer(
            vocab_size=900, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    raw.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        pad_token="<pad>",
        padding_side=side,
        extra_special_tokens=["<start_of_turn>", "<end_of_turn>"],
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def language(kind: str, folder: Path, width: int = 48, side: str = "left") -> tuple[Path, Any, Any]:
    """A tiny model of the width that the goldens have: its folder, the tokenizer and the model."""
    import transformers as hf

    torch.manual_seed(0)
    ids: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
    sizes: dict[str, Any] = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 12}
    sizes |= {"num_key_value_heads": 2, "intermediate_size": 64, "layer_types": ["sliding_attention", "full_attention"]}
    if kind == "t5":
        tokenizer = hf.AutoTokenizer.from_pretrained(GOLDEN / "t5_unet" / "tokenizer")
        tokenizer.save_pretrained(folder)
        config = hf.T5Config(d_model=width, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=len(tokenizer))
        model: Any = hf.T5EncoderModel(config)
    else:
        tokenizer = gemma_tokenizer(folder, side)
        sizes |= ids | {"vocab_size": len(tokenizer)}
        if kind == "gemma":
            model = hf.Gemma3TextModel(hf.Gemma3TextConfig(**sizes))
        else:
            parts = hf.T5GemmaModuleConfig(**sizes)
            model = hf.T5GemmaModel(hf.T5GemmaConfig(encoder=parts, decoder=parts, **ids))
    model.eval().save_pretrained(folder)
    return folder, tokenizer, model


def imported(file: Path, folder: Path, *more: str, to: Path) -> Path:
    assert (
        main(["import", str(file), "--language-model", str(folder), "-o", str(to / "bridge.safetensors"), *more]) == 0
    )
    return to / "bridge.safetensors"


def encoded(bridge: Path, folder: Path, prompts: list[str], *more: str) -> dict[str, torch.Tensor]:
    file, output = bridge.with_name("prompts.txt"), bridge.with_name("encoded.safetensors")
    file.write_text("".join(f"{prompt}\n" for prompt in prompts))
    command = ["encode", str(bridge), "--language-model", str(folder), "--prompts", str(file), "-o", str(output)]
    assert main([*command, "--device", "cpu", *more]) == 0
    return load_file(output)


def refused(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    assert main(list(command)) == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "preset"), [("adapter", "gemma"), ("adapter_unfused", "gemma"), ("adapter_turbo", "gemma"), ("", "ella")]
)
def test_encode_gives_the_numbers_of_its_own_code_for_its_own_states(name: str, preset: str, tmp_path: Path) -> None:
    file = ROUWEI.with_stem(name) if name else ELLA
    folder, *_ = language("t5", tmp_path / "model")
    bridge = imported(file, folder, "--preset", preset, to=tmp_path)
    expected, output = file.with_name("expected.safetensors"), tmp_path / "out.safetensors"
    assert main(["encode", str(bridge), "--states", str(expected), "-o", str(output)]) == 0
    found, wanted = load_file(output), load_file(expected)
    assert {"context", "pooled"} & wanted.keys() == {"context", "pooled"} & found.keys()
    for part in {"context", "pooled"} & found.keys():
        torch.testing.assert_close(found[part], wanted[part], rtol=0, atol=1e-5)
    if not name:
        times = wanted["timesteps"].tolist()
        for i, time in enumerate(times):
            assert (
                main(["encode", str(bridge), "--states", str(expected), "--timestep", str(time), "-o", str(output)])
                == 0
            )
            torch.testing.assert_close(load_file(output)["context"][i], wanted["context"][i], rtol=0, atol=1e-5)
    exported = tmp_path / "back.safetensors"
    dialect = read_config(bridge).provenance["format"]
    assert main(["export", str(bridge), "--format", dialect, "-o", str(exported)]) == 0
    back, own = load_file(exported), load_file(file)
    assert back.keys() == own.keys() and all(torch.equal(back[key], own[key]) for key in own)


def test_the_text_path_of_ella_is_a_prompt_alone_at_its_own_length(tmp_path: Path) -> None:
    folder, tokenizer, model = language("t5", tmp_path / "model")
    bridge = imported(ELLA, folder, to=tmp_path)
    assert "5_unet" not in read_config(bridge).language.model_id and read_config(bridge).language.fingerprint
    prompts = [*PROMPTS, LONG]
    together = encoded(bridge, folder, prompts, "--timestep", "500")
    for i, prompt in enumerate(prompts):
        coded = tokenizer(prompt, return_tensors="pt", add_special_tokens=True)
        with torch.no_grad():
            states = model(**coded).last_hidden_state
        length = states.shape[1]
        assert together["attention_mask"][i].sum() == length
        torch.testing.assert_close(together["hidden_states"][i, :length], states[0], rtol=0, atol=1e-5)
        alone = encoded(bridge, folder, [prompt], "--timestep", "500")
        torch.testing.assert_close(together["context"][i], alone["context"][0], rtol=0, atol=1e-5)
        save_file({"hidden_states": states}, tmp_path / "states.safetensors")
        output = tmp_path / "out.safetensors"
        command = ["encode", str(bridge), "--states", str(tmp_path / "states.safetensors"), "-o", str(output)]
        assert main([*command, "--timestep", "500"]) == 0
        torch.testing.assert_close(load_file(output)["context"][0], alone["context"][0], rtol=0, atol=1e-5)


def test_ellas_fixed_length_hears_padding_as_its_own_code_does(tmp_path: Path) -> None:
    folder, tokenizer, model = language("t5", tmp_path / "model")
    bridge = imported(ELLA, folder, "--preset", "ella-fixed", to=tmp_path)
    prompts = [*PROMPTS, LONG * 2]
    found = encoded(bridge, folder, prompts, "--timestep", "500")
    fixed = {"max_length": 128, "padding": "max_length", "truncation": True}
    coded = tokenizer(prompts, return_tensors="pt", add_special_tokens=True, **fixed)
    assert torch.equal(found["input_ids"], coded["input_ids"]) and coded["attention_mask"][-1].all()
    with torch.no_grad():
        states = model(**coded).last_hidden_state
    torch.testing.assert_close(found["hidden_states"], states, rtol=0, atol=1e-5)
    save_file({"hidden_states": states}, tmp_path / "states.safetensors")  # without a mask: all 128 are heard
    output = tmp_path / "out.safetensors"
    command = ["encode", str(bridge), "--states", str(tmp_path / "states.safetensors"), "-o", str(output)]
    assert main([*command, "--timestep", "500"]) == 0
    torch.testing.assert_close(found["context"], load_file(output)["context"], rtol=0, atol=1e-5)
    flexible = encoded(imported(ELLA, folder, to=tmp_path), folder, prompts[:1], "--timestep", "500")
    assert (flexible["context"][0] - found["context"][0]).abs().max() > 1e-3


def test_the_text_path_of_gemma_cuts_what_stands_before_the_prompt(tmp_path: Path) -> None:
    folder, tokenizer, model = language("gemma", tmp_path / "model")
    bridge = imported(ROUWEI, folder, "--preset", "gemma", to=tmp_path)
    template = PRESETS["gemma"].prompt.template
    before = len(tokenizer(template.partition("{prompt}")[0], add_special_tokens=False)["input_ids"])
    assert read_config(bridge).prompt.max_length == 32 + before  # of what is heard as much as there are positions
    spaced = [f" {prompt} " for prompt in PROMPTS]  # which its chat template takes off
    found = encoded(bridge, folder, spaced)
    for i, prompt in enumerate(PROMPTS):
        coded = tokenizer(template.replace("{prompt}", prompt), return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            states = model(**coded, output_hidden_states=True).hidden_states[-1][:, before:]
        assert coded["input_ids"][0, 0] == tokenizer.bos_token_id and coded["input_ids"][0, 1] == 4
        torch.testing.assert_close(found["hidden_states"][i, : states.shape[1]], states[0], rtol=0, atol=1e-5)
        alone = encoded(bridge, folder, [prompt])
        for part in ("context", "pooled"):
            torch.testing.assert_close(found[part][i], alone[part][0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_text_path_of_t5gemma_pads_on_the_tokenizers_side(side: str, tmp_path: Path) -> None:
    folder, tokenizer, model = language("t5gemma", tmp_path / "model", side=side)
    bridge = imported(ROUWEI, folder, "--preset", "t5gemma", to=tmp_path)
    assert read_config(bridge).prompt.padding_side == side
    found = encoded(bridge, folder, PROMPTS)
    coded = tokenizer([p + "<eos>" for p in PROMPTS], return_tensors="pt", padding="max_length", max_length=32)
    assert torch.equal(found["input_ids"], coded["input_ids"])
    with torch.no_grad():
        states = model.encoder(input_ids=coded["input_ids"], attention_mask=coded["attention_mask"]).last_hidden_state
    real = coded["attention_mask"].bool()
    torch.testing.assert_close(found["hidden_states"][real], states[real], rtol=0, atol=1e-4)


def test_a_prompt_of_more_than_the_positions_is_cut_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, *_ = language("gemma", tmp_path / "model")
    bridge = imported(ROUWEI, folder, "--preset", "gemma", to=tmp_path)
    assert encoded(bridge, folder, [LONG])["hidden_states"].shape[1] == 32
    assert any("are not heard" in record.message for record in caplog.records)


def test_what_is_recorded(tmp_path: Path) -> None:
    folder, *_ = language("t5", tmp_path / "model")
    bridge = imported(ELLA, folder, "--prompt", "max_length=64", "--heads", "4", to=tmp_path)
    config = read_config(bridge)
    assert config.prompt.max_length == 64 and config.adapter.heads == 4
    made = config.provenance
    assert made["changed"] == {"max_length": 64, "heads": 4} and made["preset"] == "ella" and made["preset_source"]
    assert list(made["sha256"]) == ["adapter.safetensors"] and len(made["sha256"]["adapter.safetensors"]) == 64
    assert config.vision.fingerprint is None and config.vision.target == "unet"
    assert main(["inspect", str(bridge)]) == 0


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    narrow, *_ = language("t5", tmp_path / "narrow", width=32)
    fits, *_ = language("t5", tmp_path / "fits")
    to = ("-o", str(tmp_path / "b.safetensors"))
    ella = ("import", str(ELLA), "--language-model")
    assert "for a language model of width 48 (google/flan-t5-xl), " in refused(capsys, *ella, str(narrow), *to)
    unet = str(GOLDEN / "t5_unet" / "vision")
    said = refused(capsys, *ella, str(fits), "--vision-model", unet, *to)
    assert "for a vision model of context width 64 (Stable Diffusion 1.5), " in said
    said = refused(capsys, "import", str(ROUWEI), "--language-model", str(fits), *to)
    assert "name a preset, gemma or t5gemma" in said
    said = refused(
        capsys, "import", str(ROUWEI), "--preset", "gemma", "--language-model", str(fits), *to, "--vision-model", unet
    )
    assert "the adapter gives a pooled vector of width 40, " in said and "takes none" in said
    vae = tmp_path / "odd.safetensors"
    save_file({"odd": torch.zeros(1)}, vae)
    assert "odd.safetensors is of no known kind" in refused(
        capsys, "import", str(vae), "--language-model", str(fits), *to
    )
    assert not (tmp_path / "b.safetensors").exists()
    bridge = imported(ELLA, fits, to=tmp_path)
    assert "unknown export format 'x'; known: peft" in refused(capsys, "export", str(bridge), "--format", "x", *to)
    other = str(language("t5", tmp_path / "wide", width=64)[0])
    (tmp_path / "prompts.txt").write_text("sea\n")
    said = refused(
        capsys, "encode", str(bridge), "--language-model", other, "--prompts", str(tmp_path / "prompts.txt"),
        "--timestep", "5", *to,
    )  # fmt: skip
    assert "hidden 48" in said and "hidden 64" in said
    checkpoint = BridgeCheckpoint.load(bridge)
    assert json.dumps(checkpoint.config.provenance)
