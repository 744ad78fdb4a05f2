"""``lavi-bridge export``: what other programs read of a bridge says what the bridge says. The file for LoRA loaders is
loaded by ComfyUI's own loader in ``tests/nodes/inside/check_lora_file.py``."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
import transformers
from lavi_bridge.lavi_core import adapters, lora
from lavi_bridge.lavi_core.checkpoint import BridgeCheckpoint
from lavi_bridge.lavi_core.config import LoRAConfig
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.lavi_core.lora import Delta
from lavi_bridge.training.commands import main
from lavi_bridge.training.models.bridge_files import exporting
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
CASES = sorted(file.parent.name for file in GOLDEN.glob("*/case.json"))


@pytest.fixture
def case(tmp_path):
    """The authors' folder with T5 and a U-Net, imported to bridge.safetensors beside its models."""
    return imported("t5_unet", tmp_path / "case")


def imported(name, folder):
    shutil.copytree(GOLDEN / name, folder)
    assert main(["import", str(folder / "released"), *models(folder), "-o", str(folder / "bridge.safetensors")]) == 0
    return folder


def models(case):
    return ["--language-model", str(case / "text_encoder"), "--vision-model", str(case / "vision")]


def exported(case, form, *more, name="out"):
    """The exit status and the path of the export."""
    output = case.parent / "new" / name
    return main(["export", str(case / "bridge.safetensors"), "--format", form, "-o", str(output), *more]), output


def refused(capsys, case, form, *more, **names):
    """The one sentence of a refusal that wrote nothing."""
    status, output = exported(case, form, *more, **names)
    assert status == 2 and not output.parent.exists()
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert sentence.startswith("lavi-bridge: ")
    return sentence


def change(case, **parts):
    """Write the case's bridge again with other parts; ``config`` is a dict of changes."""
    path = case / "bridge.safetensors"
    checkpoint = BridgeCheckpoint.load(path)
    config = replace(checkpoint.config, **parts.pop("config", {}))
    replace(checkpoint, config=config, **parts).save(path)
    return checkpoint


def same(one, other):
    """Equal keys and, to the bit and in dtype, equal tensors."""
    return one.keys() == other.keys() and all(
        one[key].dtype == other[key].dtype and torch.equal(one[key], other[key]) for key in one
    )


def same_lora(one, other):
    halves = ({f"{path}.{i}": d[i] for path, d in deltas.items() for i in (0, 1)} for deltas in (one, other))
    return same(*halves) and all(one[path].scale == other[path].scale for path in one)


def same_lists(one, other):
    return len(one) == len(other) and all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("name", CASES)
def test_what_was_released_is_released_again(name, tmp_path):
    """Both lists to the bit, and the folder's bridge once more."""
    case = imported(name, tmp_path / "case")
    status, output = exported(case, "released", *models(case))
    assert status == 0
    for file in ("lora_text.pt", "lora_vis.pt"):
        theirs, ours = (torch.load(folder / file, weights_only=True) for folder in (case / "released", output))
        assert type(ours) is list and same_lists(ours, theirs)
    wrote = sorted(path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file())
    weights = "adapter/diffusion_pytorch_model.safetensors"
    assert wrote == ["adapter/config.json", weights, "lora_text.pt", "lora_vis.pt"]
    config = json.loads((output / "adapter" / "config.json").read_text())
    assert [config[key] for key in ("in_dim", "int_dim", "out_dim")] == json.loads((case / "case.json").read_text())[
        "adapter"
    ]
    before = BridgeCheckpoint.load(case / "bridge.safetensors")
    shutil.rmtree(case / "released")
    output.rename(case / "released")
    again = BridgeCheckpoint.load(imported_again(case))
    assert same(load_file(case / "released" / weights), before.adapter) and same(again.adapter, before.adapter)
    assert same_lora(again.language_lora, before.language_lora) and same_lora(again.vision_lora, before.vision_lora)


def imported_again(case):
    path = case / "again.safetensors"
    assert main(["import", str(case / "released"), *models(case), "-o", str(path)]) == 0
    return path


def test_a_scale_that_is_a_power_of_two_goes_into_the_up_matrices(case):
    before = change(case, config={"language_lora": LoRAConfig(rank=4, alpha=2.0)}, language_lora=scaled(case, 0.5))
    assert before.language_lora["encoder.block.0.layer.0.SelfAttention.q"].scale == 1
    status, output = exported(case, "released", *models(case))
    assert status == 0
    ours, theirs = (torch.load(f / "lora_text.pt", weights_only=True) for f in (output, case / "released"))
    assert same_lists(ours[::2], [up * 0.5 for up in theirs[::2]]) and same_lists(ours[1::2], theirs[1::2])


def scaled(case, scale):
    found = BridgeCheckpoint.load(case / "bridge.safetensors").language_lora
    return {path: delta._replace(scale=scale) for path, delta in found.items()}


def test_what_the_authors_layout_cannot_hold(case, capsys):
    whole = (case / "bridge.safetensors").read_bytes()
    released = ("released", *models(case))
    whole_bridge = BridgeCheckpoint.load(case / "bridge.safetensors")
    path, delta = next(iter(whole_bridge.language_lora.items()))
    others = {key: value for key, value in whole_bridge.language_lora.items() if key != path}

    change(case, config={"language_lora": LoRAConfig(rank=4, alpha=3.0)}, language_lora=scaled(case, 0.75))
    assert f"language LoRA of {path} has alpha / rank = 3 / 4" in refused(capsys, case, *released)
    change(case, language_lora=others)
    assert f"has 7 of the 8 sites of T5EncoderModel, not {path}" in refused(capsys, case, *released)
    wider = Delta(torch.ones(5, 32), torch.ones(64, 5), 1.0)
    change(case, language_lora={path: wider, **others})
    assert "language LoRA has the ranks 4, 5, the authors' lists hold one rank" in refused(capsys, case, *released)
    change(case, language_lora={path: delta._replace(up=delta.up.float() * 1e8), **others})
    assert f"language LoRA of {path} has values that half precision" in refused(capsys, case, *released)
    change(case, vision_lora={}, config={"vision_lora": None}, language_lora=whole_bridge.language_lora)
    assert "vision LoRA has 0 of the 65 sites of UNet2DConditionModel" in refused(capsys, case, *released)

    adapter = replace(whole_bridge.config.adapter, kind="linear")
    change(case, config={"adapter": adapter}, adapter=adapters.build(adapter).state_dict())
    assert "has the adapter 'linear', the authors' layout holds 'mlp' alone" in refused(capsys, case, *released)
    adapter = replace(whole_bridge.config.adapter, layers=whole_bridge.config.language.num_layers)
    averaged = {"adapter": adapter, "prompt": replace(whole_bridge.config.prompt, hidden_states="learned_mean")}
    change(case, config=averaged, adapter=adapters.build(adapter).state_dict())
    assert "hears several layers (hidden_states = 'learned_mean'), the authors'" in refused(capsys, case, *released)
    adapter = replace(whole_bridge.config.adapter, pooled_width=6)
    plain = {"adapter": adapter, "prompt": whole_bridge.config.prompt}
    change(case, config=plain, adapter=adapters.build(adapter).state_dict())
    assert "gives a pooled vector of width 6" in refused(capsys, case, *released)
    (case / "bridge.safetensors").write_bytes(whole)
    assert exported(case, *released)[0] == 0


def test_the_authors_layout_needs_the_models_that_the_bridge_was_made_for(case, capsys, tmp_path):
    assert "so --language-model is needed" in refused(capsys, case, "released")
    assert "so --vision-model is needed" in refused(capsys, case, "released", *models(case)[:2])
    other = imported("llama_unet", tmp_path / "other")
    said = refused(capsys, case, "released", *models(other)[:2], *models(case)[2:])
    assert "was made for case/text_encoder" in said and "load case/text_encoder" in said
    weights = case / "vision" / "diffusion_pytorch_model.safetensors"
    tensors = {key: -value for key, value in load_file(weights).items()}
    save_file(tensors, weights, {"format": "pt"})
    assert "was made for vision" in refused(capsys, case, "released", *models(case))


def test_prompts_that_the_authors_scripts_would_read_otherwise_are_told(case, caplog):
    caplog.set_level("WARNING")
    prompt = BridgeCheckpoint.load(case / "bridge.safetensors").config.prompt
    assert exported(case, "released", *models(case))[0] == 0 and not caplog.records
    change(case, config={"prompt": replace(prompt, max_length=24)})
    assert exported(case, "released", *models(case), name="another")[0] == 0
    assert "with max_length = 77, this bridge was trained with 24" in caplog.text


@pytest.mark.parametrize("name", CASES)
def test_peft_computes_what_our_merged_model_computes(name, tmp_path):
    """With the real class on the plain trunk, and read back to the bit."""
    case = imported(name, tmp_path / "case")
    status, output = exported(case, "peft", *models(case)[:2])
    assert status == 0
    before = BridgeCheckpoint.load(case / "bridge.safetensors")
    assert same_lora(lora.from_peft(output), before.language_lora)

    encoder = TextEncoder.load(case / "text_encoder", dtype=torch.float32)
    expected = load_file(case / "expected.safetensors")
    batch = {"input_ids": expected["input_ids"], "attention_mask": expected["attention_mask"]}
    with torch.no_grad():
        plain = encoder.model(**batch).last_hidden_state
        lora.merge(encoder.model, before.language_lora)
        ours = encoder.model(**batch).last_hidden_state
    kind = type(encoder.model)
    base = kind.from_pretrained(case / "text_encoder", dtype=torch.float32)
    with torch.no_grad():
        loaded = peft.PeftModel.from_pretrained(base, str(output)).eval()
        theirs = loaded(**batch).last_hidden_state
        there = sum(key.endswith("lora_A.default.weight") for key, _ in loaded.named_parameters())
    assert there == len(before.language_lora)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4 * ours.abs().max().item())
    assert (plain - ours).norm() > 0.01 * ours.norm()
    alone = peft.AutoPeftModel.from_pretrained(str(output), dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(alone(**batch).last_hidden_state, theirs)


def test_peft_keeps_scales_and_ranks_that_differ_by_site(case):
    before = BridgeCheckpoint.load(case / "bridge.safetensors").language_lora
    generator = torch.Generator().manual_seed(0)
    odd = {}
    for i, (path, delta) in enumerate(before.items()):
        rank = 4 + (i == 3)
        shapes = (rank, delta.down.shape[1]), (delta.up.shape[0], rank)
        down, up = (torch.randn(shape, generator=generator) for shape in shapes)
        odd[path] = Delta(down, up, 1.5 if i == 5 else 0.75)
    change(case, language_lora=odd)
    status, output = exported(case, "peft")
    assert status == 0 and same_lora(lora.from_peft(output), odd)
    encoder = TextEncoder.load(case / "text_encoder", dtype=torch.float32)
    lora.merge(encoder.model, odd)
    base = transformers.T5EncoderModel.from_pretrained(case / "text_encoder", dtype=torch.float32)
    merged = peft.PeftModel.from_pretrained(base, str(output)).merge_and_unload().state_dict()
    assert len(merged) == len(encoder.model.state_dict())
    for key, weight in encoder.model.state_dict().items():
        torch.testing.assert_close(merged[key], weight)


def test_peft_refuses_a_model_with_a_head_instead_of_loading_nothing(tmp_path):
    case = imported("llama_unet", tmp_path / "case")
    output = exported(case, "peft")[1]
    whole = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_pretrained(case / "text_encoder"))
    with pytest.raises(ValueError, match="not found"):
        peft.PeftModel.from_pretrained(whole, str(output))


def test_a_peft_folder_is_checked_against_the_language_model_where_one_is_given(case, capsys, tmp_path):
    other = imported("clip_full_unet", tmp_path / "other")
    assert "was made for case/text_encoder (hidden 32)" in refused(capsys, case, "peft", *models(other)[:2])


def test_a_lora_file_holds_the_vision_lora_alone(case):
    status, output = exported(case, "lora", name="a.safetensors")
    assert status == 0
    whole, alone = load_file(case / "bridge.safetensors"), load_file(output)
    assert len(alone) == 3 * 65 and all(key.startswith("lora_unet_") for key in alone)
    assert same(alone, {key: whole[key] for key in alone})


def test_parts_that_a_bridge_has_not(case, capsys):
    change(case, vision_lora={}, config={"vision_lora": None})
    assert "has no vision LoRA" in refused(capsys, case, "lora", name="a.safetensors")
    change(case, language_lora={}, config={"language_lora": None})
    assert "has no language LoRA" in refused(capsys, case, "peft")


def test_a_lora_file_is_named_as_the_host_lists_it(case, capsys):
    assert "a LoRA file's name ends in .safetensors" in refused(capsys, case, "lora", name="a.pt")


@pytest.mark.parametrize(("form", "name"), [("peft", "out"), ("lora", "out.safetensors"), ("released", "out")])
def test_an_existing_target_is_replaced_only_when_asked(case, capsys, form, name):
    output = exported(case, form, *models(case), name=name)[1]
    before = contents(output)
    some = next(iter(before))
    (output / some if output.is_dir() else output).write_text("old")
    assert exported(case, form, *models(case), name=name)[0] == 2
    assert "is there already; take another output, or add --overwrite" in capsys.readouterr().err
    assert contents(output)[some] == b"old"
    assert exported(case, form, *models(case), "--overwrite", name=name)[0] == 0
    assert contents(output).keys() == before.keys() and contents(output)[some] != b"old"
    assert [path.name for path in output.parent.iterdir()] == [name]


def contents(output):
    if output.is_file():
        return {"": output.read_bytes()}
    return {p.relative_to(output).as_posix(): p.read_bytes() for p in sorted(output.rglob("*")) if p.is_file()}


def test_a_folder_of_something_else_is_never_replaced(case, capsys):
    output = exported(case, "peft")[1]
    (output / "notes.txt").write_text("mine")
    assert exported(case, "peft", "--overwrite")[0] == 2
    assert "holds notes.txt, which no such export writes" in capsys.readouterr().err
    assert (output / "notes.txt").read_text() == "mine"
    assert exported(case, "lora", "--overwrite", name="out")[0] == 2
    (case.parent / "new" / "a.safetensors").mkdir()
    assert exported(case, "lora", "--overwrite", name="a.safetensors")[0] == 2
    assert "is a folder, this export is a file" in capsys.readouterr().err


def test_a_full_disk_leaves_the_earlier_export(case, capsys, monkeypatch):
    output = exported(case, "released", *models(case))[1]
    before = contents(output)

    def full(path, tensors):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "_write_list", full)
    assert exported(case, "released", *models(case), "--overwrite")[0] == 2
    assert "No space left on device" in capsys.readouterr().err
    assert contents(output) == before and [path.name for path in output.parent.iterdir()] == ["out"]
