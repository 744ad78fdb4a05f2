"""``lavi-bridge import``: what it takes, what it records, and what it refuses in one sentence without writing a file.
That its numbers are the authors' is tested in ``tests/lavi_core/test_golden.py``."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from lavi_bridge.lavi_core import fingerprint
from lavi_bridge.lavi_core.checkpoint import BridgeCheckpoint
from lavi_bridge.training.commands import main
from lavi_bridge.training.models.diffusers_folder import read_vision
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).resolve().parents[2] / "golden"


@pytest.fixture
def case(tmp_path):
    """A copy of the T5 and U-Net case, to be damaged."""
    shutil.copytree(GOLDEN / "t5_unet", tmp_path / "case")
    return tmp_path / "case"


def run(case, *more, language="text_encoder", vision="vision"):
    """The exit status and the path of the bridge."""
    output = case.parent / "new" / "bridge.safetensors"
    models = ["--language-model", str(case / language), "--vision-model", str(case / vision)]
    return main(["import", str(case / "released"), *models, "-o", str(output), *more]), output


def refused(capsys, case, *more, **models):
    """The one sentence of a refusal that wrote nothing."""
    status, output = run(case, *more, **models)
    assert status == 2 and not output.parent.exists()
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert sentence.startswith("lavi-bridge: ")
    return sentence


def config_of(case, *more, **models):
    status, output = run(case, *more, **models)
    assert status == 0
    return BridgeCheckpoint.load(output).config


def pipeline(case, **more):
    """The case's U-Net as a diffusers pipeline folder; each keyword is a folder's config.json."""
    (case / "pipeline").mkdir()
    shutil.copytree(case / "vision", case / "pipeline" / "unet")
    for name, config in more.items():
        (case / "pipeline" / name).mkdir()
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        (case / "pipeline" / name / file).write_text(json.dumps(config))
    return "pipeline"


def set_config(case, folder, **values):
    file = case / folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def change_list(case, name, change):
    file = case / "released" / name
    tensors = torch.load(file, weights_only=True)
    torch.save(change(tensors), file)


def test_what_the_folders_do_not_say_is_as_in_the_authors_scripts(case):
    config = config_of(case)
    assert (config.vision.objective, config.vision.latent_scale, config.vision.target) == ("epsilon", 0.18215, "unet")
    assert config.vision.model_id == "vision" and config.language.model_id == "case/text_encoder"
    assert config.provenance["folder"] == "released"
    assert set(config.provenance["sha256"]) == {
        "lora_text.pt",
        "lora_vis.pt",
        "adapter/diffusion_pytorch_model.safetensors",
    }


@pytest.mark.parametrize("vae", ["vae", "vqvae"])
def test_a_pipeline_folder_says_objective_and_scale(case, vae):
    scheduler = {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
    name = pipeline(case, scheduler=scheduler, **{vae: {"_class_name": "AutoencoderKL", "scaling_factor": 0.5}})
    config = config_of(case, vision=name)
    assert (config.vision.objective, config.vision.latent_scale) == ("v_prediction", 0.5)
    assert config.vision.model_id == "pipeline"
    assert config.vision.fingerprint == config_of(case).vision.fingerprint


def test_a_prompt_recipe_can_be_changed(case):
    config = config_of(
        case, "--prompt", "max_length=32", "--prompt", "language_mask=true", "--prompt", "template={prompt}, 4k"
    )
    assert (config.prompt.max_length, config.prompt.language_mask, config.prompt.template) == (32, True, "{prompt}, 4k")


def test_a_padding_side_that_the_tokenizer_states_is_kept(case):
    file = case / "tokenizer" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"padding_side": "left"}))
    assert config_of(case).prompt.padding_side == "left"


def test_a_vision_print_from_slices_is_that_of_the_loaded_network(case):
    network = diffusers.UNet2DConditionModel.from_pretrained(case / "vision")
    skeleton, vision = read_vision(case / "vision")
    assert all(parameter.is_meta for parameter in skeleton.parameters())
    assert vision.fingerprint == fingerprint.weights_fingerprint(network)
    network.half().save_pretrained(case / "sharded", max_shard_size="100KB")
    assert len(list((case / "sharded").glob("*.safetensors"))) > 2
    assert read_vision(case / "sharded")[1].fingerprint == vision.fingerprint
    pixart = GOLDEN / "t5_transformer" / "vision"
    loaded = diffusers.PixArtTransformer2DModel.from_pretrained(pixart)
    assert read_vision(pixart)[1].fingerprint == fingerprint.weights_fingerprint(loaded)


def test_an_imported_bridge_draws_and_an_unrecorded_print_is_not_checked(case, tiny, capsys):
    scheduler = {"_class_name": "DDIMScheduler", "prediction_type": "epsilon"}
    folder = case / pipeline(case, scheduler=scheduler, vae={"scaling_factor": 1.0})
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"

    def draws():
        models = ["--language-model", str(case / "text_encoder"), "--vision-model", str(folder)]
        options = ["--vae", str(tiny / "vae.safetensors"), "--size", "32", "--steps", "2", "-o", str(case / "a.png")]
        return main(["sample", str(case.parent / "new" / "bridge.safetensors"), "a red circle", *models, *options])

    run(case, vision="pipeline")
    assert draws() == 0
    whole = load_file(weights)
    save_file({name: -tensor for name, tensor in whole.items()}, weights, {"format": "pt"})
    assert draws() == 2 and "has other weights" in capsys.readouterr().err
    kept = weights.rename(case / "kept.safetensors")
    run(case, vision="pipeline")
    kept.rename(weights)
    assert draws() == 0


@pytest.mark.parametrize(("own", "padding"), [("</s>", "<unk>"), ("[PAD]", "[PAD]")])
def test_a_llama_is_padded_as_in_the_authors_scripts(tmp_path, own, padding):
    """They set '[PAD]' whatever the tokenizer says, which is its unknown token unless it is in the vocabulary."""
    case = tmp_path / "case"
    shutil.copytree(GOLDEN / "llama_unet", case)
    file = case / "tokenizer" / "tokenizer_config.json"
    config = json.loads(file.read_text()) | {"pad_token": own}
    if own == "[PAD]":
        config["added_tokens_decoder"]["399"] = {"content": "[PAD]", "special": True}
    file.write_text(json.dumps(config))
    assert config_of(case).prompt.pad_token == padding


def test_pickled_weights_are_left_closed_and_have_no_print(case, caplog):
    caplog.set_level("INFO")
    for folder, old, new in (
        ("text_encoder", "model.safetensors", "pytorch_model.bin"),
        ("vision", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
    ):
        (case / folder / old).unlink()
        (case / folder / new).write_bytes(b"a pickle")
    config = config_of(case)
    assert config.language.fingerprint is config.vision.fingerprint is None
    said = caplog.text
    assert "no safetensors weights of case/text_encoder were read: its fingerprint is not recorded" in said
    assert "no safetensors weights of vision were read: its fingerprint is not recorded" in said


def test_a_missing_folder(case, capsys):
    shutil.rmtree(case / "released")
    assert "there is no folder" in refused(capsys, case)


def test_no_adapter(case, capsys):
    shutil.rmtree(case / "released" / "adapter")
    assert "adapter holds no adapter: it needs diffusion_pytorch_model.safetensors or" in refused(capsys, case)


@pytest.mark.parametrize("name", ["lora_text.pt", "lora_vis.pt"])
def test_a_missing_list(case, capsys, name):
    (case / "released" / name).unlink()
    assert f"there is no {case / 'released' / name}" in refused(capsys, case)


@pytest.mark.parametrize("length", [0, 100, 3000, -1])
def test_a_list_that_is_cut_short(case, capsys, length):
    file = case / "released" / "lora_text.pt"
    file.write_bytes(file.read_bytes()[:length])
    said = refused(capsys, case)
    assert "lora_text.pt is cut short or" in said and "fetch it again" in said


class Code:
    def __reduce__(self):
        return os.system, ("touch harmed",)


@pytest.mark.parametrize("name", ["lora_vis.pt", "adapter/diffusion_pytorch_model.bin"])
def test_a_pickle_with_code_in_it_is_not_opened(case, capsys, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (case / "released" / "adapter" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({"x": Code()}, case / "released" / "adapter" / "diffusion_pytorch_model.bin")
    if name == "lora_vis.pt":
        shutil.copytree(GOLDEN / "t5_unet" / "released" / "adapter", case / "released" / "adapter", dirs_exist_ok=True)
        torch.save([Code()], case / "released" / name)
    assert f"{name} holds more than tensors, which could run code, so it is not opened" in refused(capsys, case)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("content", [{"a": torch.ones(2, 2)}, [], [1, 2], [torch.ones(3)]])
def test_a_pickle_that_is_no_list_of_matrices(case, capsys, content):
    torch.save(content, case / "released" / "lora_text.pt")
    assert "lora_text.pt is not a list of LoRA matrices" in refused(capsys, case)


def test_an_entry_of_another_shape_is_named_with_both_sides(case, capsys):
    change_list(case, "lora_vis.pt", lambda t: [*t[:12], torch.ones(48, 4), *t[13:]])
    said = refused(capsys, case)
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"
    assert f"entry 12 of {case / 'released' / 'lora_vis.pt'} is [48, 4], {path} needs [32, 4] (up)" in said
    assert "the file holds 130 matrices, UNet2DConditionModel of this size takes 130" in said


def test_a_list_that_is_too_short(case, capsys):
    change_list(case, "lora_text.pt", lambda t: t[:-2])
    said = refused(capsys, case)
    assert "ends before entry 14, the up matrix [32, 4] of encoder.block.1.layer.0.SelfAttention.o" in said
    assert "the file holds 14 matrices, T5EncoderModel of this size takes 16" in said


def test_a_list_that_is_too_long(case, capsys):
    change_list(case, "lora_text.pt", lambda t: [*t, torch.ones(5, 4)])
    said = refused(capsys, case)
    assert "entry 16 of" in said and "is [5, 4], but the file holds 17 matrices" in said


def test_up_and_down_exchanged(case, capsys):
    change_list(case, "lora_text.pt", lambda t: [m for i in range(0, len(t), 2) for m in (t[i + 1], t[i])])
    assert "entry 0 of" in refused(capsys, case)


def test_a_rank_that_changes_within_a_list(case, capsys):
    change_list(case, "lora_text.pt", lambda t: [*t[:2], torch.ones(64, 3), torch.ones(3, 32), *t[4:]])
    assert "entry 2 of" in refused(capsys, case)


def test_a_t5_bridge_with_a_llama(case, capsys):
    shutil.copytree(GOLDEN / "clip_full_unet" / "text_encoder", case / "clip" / "text_encoder")
    shutil.copytree(GOLDEN / "clip_full_unet" / "tokenizer", case / "clip" / "tokenizer")
    said = refused(capsys, case, language="clip/text_encoder")
    assert "the adapter takes width 32, the language model clip/text_encoder gives 24" in said
    shutil.copytree(GOLDEN / "llama_unet" / "text_encoder", case / "llama" / "text_encoder")  # of the same width
    shutil.copytree(GOLDEN / "llama_unet" / "tokenizer", case / "llama" / "tokenizer")
    said = refused(capsys, case, language="llama/text_encoder")
    assert "entry 0 of" in said and "layers.0.self_attn.q_proj needs [32, 4]" in said


def test_a_unet_bridge_with_a_pixart(case, capsys):
    shutil.copytree(GOLDEN / "t5_transformer" / "vision", case / "pixart")
    said = refused(capsys, case, vision="pixart")
    assert "the adapter gives width 48, the vision model pixart takes 64" in said


def test_language_folders_that_cannot_be_read(case, capsys):
    assert "nowhere is not a Hugging Face model folder" in refused(capsys, case, language="nowhere")
    weights = case / "text_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "model.safetensors is cut short or damaged" in refused(capsys, case)
    set_config(case, "text_encoder", model_type="no such")
    assert "does not know model_type 'no such'" in refused(capsys, case)
    (case / "text_encoder" / "config.json").unlink()
    assert "has no config.json" in refused(capsys, case)


def test_a_family_whose_order_is_not_known(case, capsys):
    config = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 400, "n_positions": 130}
    (case / "text_encoder" / "config.json").write_text(json.dumps(config))
    (case / "text_encoder" / "model.safetensors").unlink()
    said = refused(capsys, case)
    assert "unknown language family in the authors' LoRA lists 'generic'; known: t5, clip, bert, roberta, llama" in said


def test_vision_folders_that_cannot_be_read(case, capsys):
    assert "no vision model in" in refused(capsys, case, vision="nowhere")
    weights = case / "vision" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert f"{case / 'vision'} is cut short or no safetensors file" in refused(capsys, case)
    set_config(case, "vision", addition_embed_type="text_time", addition_time_embed_dim=8)
    set_config(case, "vision", projection_class_embeddings_input_dim=64)
    assert "(sdxl) takes a pooled vector, which the adapter does not make" in refused(capsys, case)
    set_config(case, "vision", _class_name="UNet3DConditionModel")
    assert "a vision model of class 'UNet3DConditionModel' is not known" in refused(capsys, case)
    (case / "vision" / "config.json").write_text("{")
    assert "is not readable as JSON" in refused(capsys, case)


def test_prompt_values_that_do_not_fit(case, capsys):
    assert "--prompt takes KEY=VALUE, got 'max_length'" in refused(capsys, case, "--prompt", "max_length")
    assert "unknown key prompt.length" in refused(capsys, case, "--prompt", "length=3")
    assert "prompt.max_length = 'long'; it must be of type int" in refused(capsys, case, "--prompt", "max_length=long")


def test_adapters_that_are_none(case, capsys):
    file = case / "released" / "adapter" / "diffusion_pytorch_model.safetensors"
    whole = load_file(file)
    save_file({"weight": torch.ones(2)}, file)
    assert "has no tensor norm1.weight, so it is no adapter of the authors'" in refused(capsys, case)
    save_file(whole | {"ff1.net.2.bias": torch.ones(7)}, file)
    assert (
        "ff1.net.2.bias of" in (said := refused(capsys, case)) and "is [7], an adapter of its widths has [40]" in said
    )
    save_file(whole | {"more": torch.ones(7)}, file)
    assert "is [7], an adapter of its widths has no such tensor" in refused(capsys, case)
    save_file({key: tensor for key, tensor in whole.items() if key != "ff2.net.0.proj.bias"}, file)
    assert "is absent, an adapter of its widths has [320]" in refused(capsys, case)
    file.write_bytes(file.read_bytes()[:500])
    assert "is cut short or damaged" in refused(capsys, case)
    file.rename(file.with_suffix(".bin"))
    torch.save([1], file.with_suffix(".bin"))
    assert "is not the state dict of an adapter" in refused(capsys, case)
