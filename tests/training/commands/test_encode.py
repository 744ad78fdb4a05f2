"""``lavi-bridge encode`` and ``lavi-bridge inspect``. That the numbers are right is tested with the golden cases."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lavi_bridge.lavi_core import adapters
from lavi_bridge.lavi_core.bridge import Bridge
from lavi_bridge.lavi_core.checkpoint import BridgeCheckpoint
from lavi_bridge.lavi_core.config import AdapterConfig, BridgeConfig, LoRAConfig, VisionConfig
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.lavi_core.lora import Delta
from lavi_bridge.lavi_core.prompt import PromptRecipe
from lavi_bridge.training.commands import main
from lavi_bridge.training.models.bridge_files.encoding import encode_prompts, read_prompts
from lavi_bridge.training.models.named import WEIGHTS
from safetensors.torch import load_file

LANGUAGE = Path(__file__).resolve().parents[2] / "golden" / "t5_unet" / "text_encoder"
PROMPTS = ["a rabbit, forest in spring", "", "Sea.", "two elephants in the forest"]


@pytest.fixture(scope="module")
def encoder():
    return TextEncoder.load(LANGUAGE)


def checkpoint(encoder, pooled: int | None = 7, language_fingerprint=True, **prompt):
    """A bridge to an SDXL-like model."""
    torch.manual_seed(0)
    language = encoder.config if language_fingerprint else replace(encoder.config, fingerprint=None, facts=None)
    config = BridgeConfig(
        language=language,
        prompt=PromptRecipe(**{"max_length": 24} | prompt),
        adapter=AdapterConfig(kind="mlp", in_width=32, inner_width=20, out_width=12, pooled_width=pooled),
        vision=VisionConfig(
            model_id="xl",
            target="sdxl",
            context_width=12,
            objective="epsilon",
            latent_channels=4,
            latent_scale=0.13025,
            fingerprint=None,
        ),
        vision_lora=LoRAConfig(rank=2, alpha=6.0),
        provenance={"recipe": {"name": "tiny", "steps": 3}},
    )
    looks = {"mid_block.resnets.0.conv1": Delta(torch.randn(2, 4, 3, 3), torch.randn(6, 2, 1, 1), 3.0)}
    return BridgeCheckpoint(config, adapters.build(config.adapter).state_dict(), {}, looks)


@pytest.fixture
def bridge(encoder, tmp_path):
    checkpoint(encoder).save(tmp_path / "bridge.safetensors")
    return tmp_path / "bridge.safetensors"


def run(bridge, prompts, *more, language=LANGUAGE):
    (bridge.parent / "prompts.txt").write_text(prompts)
    output = bridge.parent / "new" / "encoded.safetensors"
    command = [
        "encode",
        str(bridge),
        "--language-model",
        str(language),
        "--prompts",
        str(bridge.parent / "prompts.txt"),
    ]
    return main([*command, "-o", str(output), "--device", "cpu", *more]), output


def test_a_row_a_prompt_whatever_the_batch(bridge, encoder):
    status, output = run(bridge, "\n".join(PROMPTS) + "\n", "--batch-size", "3")
    assert status == 0
    found = load_file(output)
    shapes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in found.items()}
    assert shapes == {
        "input_ids": ((4, 24), torch.int64),
        "attention_mask": ((4, 24), torch.int64),
        "hidden_states": ((4, 24, 32), torch.float32),
        "context": ((4, 24, 12), torch.float32),
        "mask": ((4, 24), torch.bool),
        "pooled": ((4, 7), torch.float32),
    }
    assert found["mask"].all()
    assert found["attention_mask"].sum(1).tolist() == [len(encoder.tokenizer(p)["input_ids"]) for p in PROMPTS]
    with torch.no_grad():
        heard = Bridge.connect(BridgeCheckpoint.load(bridge), encoder)(PROMPTS)
    assert torch.allclose(found["context"], heard.context, atol=1e-5)
    assert torch.allclose(found["pooled"], heard.pooled, atol=1e-5)


def test_the_language_model_is_found_by_its_fingerprint(bridge, tmp_path, capsys):
    status, named = run(bridge, "a cat\n")
    assert status == 0
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(LANGUAGE.parent / part, tmp_path / "models" / "pipeline" / part)
    output, place = tmp_path / "found.safetensors", ["--language-models", str(tmp_path / "models")]
    command = ["encode", str(bridge), "--prompts", str(tmp_path / "prompts.txt"), "-o", str(output), "--device", "cpu"]
    assert main([*command, *place]) == 0
    assert torch.equal(load_file(output)["context"], load_file(named)["context"])
    (tmp_path / "none").mkdir()
    assert main([*command, "--language-models", str(tmp_path / "none")]) == 2
    assert "which is not in" in capsys.readouterr().err


def test_the_mask_is_the_one_that_the_vision_model_gets(encoder):
    connected = Bridge.connect(checkpoint(encoder, pooled=None, vision_mask=True), encoder)
    found = encode_prompts(connected, PROMPTS)
    assert torch.equal(found["mask"], found["attention_mask"].bool()) and not found["mask"].all()
    assert "pooled" not in found


@pytest.mark.parametrize("padding", ["longest", "max_length"])
def test_a_cut_template_leaves_batches_of_other_lengths(encoder, padding):
    recipe = {"template": "a glass jar {prompt}", "cut_template": True, "vision_mask": True, "padding": padding}
    connected = Bridge.connect(checkpoint(encoder, **recipe), encoder)
    whole, rows = (encode_prompts(connected, PROMPTS, size) for size in (4, 1))
    real = whole["mask"]
    length = rows["mask"].shape[1]
    assert torch.equal(rows["mask"], real[:, :length]) and not real[:, length:].any()
    assert torch.equal(rows["input_ids"], whole["input_ids"])
    for name in ("hidden_states", "context"):
        assert torch.allclose(rows[name][real[:, :length]], whole[name][real], atol=1e-5)
    assert whole["input_ids"].shape[1] > real.sum(1).max()


@pytest.mark.parametrize(
    ("text", "prompts"),
    [
        ("a\nb\n", ["a", "b"]),
        ("a\nb", ["a", "b"]),
        ("\n", [""]),
        ("a\n\n", ["a", ""]),
        ("\ufeffa\r\n\r\nb\r\n", ["a", "", "b"]),
        (" a \u2028b\x0c\n", [" a \u2028b\x0c"]),
    ],
)
def test_prompts_are_lines(tmp_path, text, prompts):
    (tmp_path / "p.txt").write_bytes(text.encode())
    assert read_prompts(tmp_path / "p.txt") == prompts


def test_what_encode_refuses(bridge, capsys, tmp_path):
    def refused(*more, prompts="a\n", **models):
        status, output = run(bridge, prompts, *more, **models)
        assert status == 2 and not output.parent.exists()
        return capsys.readouterr().err.splitlines()[-1]

    assert "prompts.txt is empty; it needs at least one line" in refused(prompts="")
    assert "--batch-size must be at least 1, got 0" in refused("--batch-size", "0")
    assert "there is no device pigeon here" in refused("--device", "pigeon")
    other = LANGUAGE.parents[1] / "t5_transformer" / "text_encoder"
    assert "was made for t5_unet/text_encoder (fingerprint" in refused(language=other)
    assert "nowhere is not a Hugging Face model folder" in refused(language=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
        read_prompts(tmp_path / "latin.txt")
    with pytest.raises(ValueError, match=r"there is no file of prompts .*none\.txt"):
        read_prompts(tmp_path / "none.txt")


def test_a_print_that_is_not_recorded_is_not_checked(encoder):
    other = TextEncoder.load(LANGUAGE.parents[1] / "t5_transformer" / "text_encoder")
    assert other.config.fingerprint != encoder.config.fingerprint
    Bridge.connect(checkpoint(encoder, language_fingerprint=False), other)
    with pytest.raises(ValueError, match="fingerprint"):
        Bridge.connect(checkpoint(encoder), other)


def test_a_write_that_fails_leaves_the_old_file(bridge, monkeypatch):
    output = bridge.parent / "new" / "encoded.safetensors"
    output.parent.mkdir()
    output.write_bytes(b"old")

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert run(bridge, "a\n")[0] == 2
    assert output.read_bytes() == b"old" and [file.name for file in output.parent.iterdir()] == [output.name]


def test_inspect_says_what_the_file_holds(bridge, capsys):
    assert main(["inspect", str(bridge), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    loaded = BridgeCheckpoint.load(bridge)
    assert facts["bytes"] == bridge.stat().st_size and facts["schema"] == loaded.config.schema
    assert facts["language"]["model_id"] == "t5_unet/text_encoder" and facts["language"]["hidden_size"] == 32
    assert facts["adapter"]["parameters"] == sum(tensor.numel() for tensor in loaded.adapter.values())
    assert facts["adapter"]["pooled_width"] == 7
    assert facts["language_lora"] is None
    looks = {"rank": 2, "alpha": 6.0, "sites": 1, "parameters": 2 * 4 * 9 + 6 * 2, "dtypes": ["float32"]}
    assert facts["vision_lora"] == looks
    assert facts["vision"]["fingerprint"] is None and facts["prompt"]["max_length"] == 24
    assert facts["provenance"] == {"recipe": {"name": "tiny", "steps": 3}}


def test_inspect_reads_well(bridge, capsys):
    assert main(["inspect", str(bridge)]) == 0
    said = {" ".join(line.split()) for line in capsys.readouterr().out.splitlines()}
    assert said >= {
        "language model t5_unet/text_encoder (t5): 2 layers, hidden 32, vocabulary 400",
        "LoRA none",
        "LoRA rank 2, alpha 6, 1 sites: 84 parameters, float32",
        "max_length 24",
        "vision model xl (sdxl): context width 12",
        "fingerprint not recorded, so any copy of the model is taken",
        "objective epsilon",
        "latents 4 channels, scale 0.13025",
        "steps 3",
    }
    assert any(line.startswith("adapter mlp, 32 -> 20 -> 12, pooled 7: ") for line in said)


def test_inspect_leaves_the_defaults_of_a_recipe_to_json(tmp_path, capsys):
    assert main(["inspect", str(WEIGHTS / "smollm2.safetensors")]) == 0
    lines = capsys.readouterr().out.splitlines()
    said = [" ".join(line.split()) for line in lines]
    assert len(lines) < 110 and "recipe, no defaults" in said and "betas [0.9, 0.98]" in said and "boost 2.0" in said
    assert not any(line.startswith(("eps ", "loss", "offset_noise", "gamma")) for line in said)
    assert main(["inspect", str(WEIGHTS / "smollm2.safetensors"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["provenance"]["recipe"]["loss"]["offset_noise"] == 0.0


def test_inspect_refuses_what_is_no_bridge(tmp_path, capsys):
    (tmp_path / "no.safetensors").write_bytes(b"no")
    assert main(["inspect", str(tmp_path / "no.safetensors")]) == 2
    assert "is cut short, damaged or no safetensors file at all" in capsys.readouterr().err


def test_a_streamed_language_model_says_the_same(bridge):
    whole = load_file(run(bridge, "\n".join(PROMPTS))[1])
    status, output = run(bridge, "\n".join(PROMPTS), "--stream")
    streamed = load_file(output)
    assert status == 0 and streamed.keys() == whole.keys()
    assert all(torch.equal(streamed[name], whole[name]) for name in whole)


def test_prompts_that_are_cut_are_named(bridge, caplog):
    long = "two elephants in the forest " * 12
    status, _ = run(bridge, f"a rabbit\n{long}\n")
    assert status == 0
    (told,) = [record.getMessage() for record in caplog.records if "not heard" in record.getMessage()]
    assert "two elephants" in told and "rabbit" not in told and len(told) < 200


def test_a_reader_that_has_enough_is_no_error(bridge):
    """As ``lavi-bridge inspect BRIDGE | head -1``."""
    command = [sys.executable, "-m", "lavi_bridge.training.commands", "inspect", str(bridge)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait() == 0
