"""Parity with the authors' released code, whose results for tiny bridges lie in ``tests/golden``.

The released folder is imported and the prompts are encoded by the commands that users have.
"""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import pytest
import torch
from lavi_bridge.lavi_core import lora
from lavi_bridge.lavi_core.bridge import Bridge
from lavi_bridge.lavi_core.checkpoint import BridgeCheckpoint
from lavi_bridge.lavi_core.importers.module_order import LANGUAGE_ORDERS
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.lavi_core.vision import VISION_TARGETS
from lavi_bridge.training.commands import main
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
CASES = sorted(file.parent.name for file in GOLDEN.glob("*/case.json"))


@pytest.fixture(params=CASES)
def case(request):
    return GOLDEN / request.param


@pytest.fixture
def imported(case, tmp_path):
    return imported_from(case, case / "released", tmp_path)


def imported_from(case, released, folder):
    path = folder / "bridge.safetensors"
    models = ["--language-model", str(case / "text_encoder"), "--vision-model", str(case / "vision")]
    assert main(["import", str(released), *models, "-o", str(path)]) == 0
    return path


def encoded(case, bridge, folder):
    """What ``encode`` writes for the case's prompts, in batches that do not divide their number."""
    prompts, output = folder / "prompts.txt", folder / "encoded.safetensors"
    prompts.write_text("".join(f"{prompt}\n" for prompt in facts(case)["prompts"]))
    command = ["encode", str(bridge), "--language-model", str(case / "text_encoder"), "--prompts", str(prompts)]
    assert main([*command, "-o", str(output), "--device", "cpu", "--batch-size", "4"]) == 0
    return load_file(output)


def facts(case):
    return json.loads((case / "case.json").read_text())


def difference(ours, expected):
    """Relative to the expected tensor's size."""
    assert ours.shape == expected.shape
    return ((ours - expected).norm() / expected.norm()).item()


def test_import_and_encode_say_what_the_authors_code_says(case, imported, tmp_path):
    expected, ours = load_file(case / "expected.safetensors"), encoded(case, imported, tmp_path)
    assert torch.equal(ours["input_ids"], expected["input_ids"])
    assert torch.equal(ours["attention_mask"], expected["attention_mask"])
    assert difference(ours["hidden_states"], expected["hidden_states"]) < 1e-4
    assert difference(ours["context"], expected["context"]) < 1e-4
    attended = expected["attention_mask"].bool() | ("vision" not in facts(case)["attention_mask_given_to"])
    assert torch.equal(ours["mask"], attended)
    assert "pooled" not in ours


@pytest.mark.parametrize("how", ["merge", "attach"])
def test_the_vision_model_predicts_what_it_predicts_in_the_authors_code(case, imported, tmp_path, how):
    expected, ours = load_file(case / "expected.safetensors"), encoded(case, imported, tmp_path)
    bridge = BridgeCheckpoint.load(imported)
    kind = getattr(diffusers, VISION_TARGETS[bridge.config.vision.target].diffusers_class)
    vision = kind.from_pretrained(case / "vision", torch_dtype=torch.float32).eval()
    plain = noise(vision, expected, ours, bridge)
    applied = getattr(lora, how)(vision, bridge.vision_lora)
    assert difference(noise(vision, expected, ours, bridge), expected["noise_pred"]) < 1e-4
    applied.remove()
    assert torch.equal(noise(vision, expected, ours, bridge), plain)
    assert difference(plain, expected["noise_pred"]) > 1e-2


@torch.no_grad()
def noise(vision, expected, ours, bridge):
    more = {}
    if bridge.config.prompt.vision_mask:
        more = {
            "encoder_attention_mask": ours["mask"].long(),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        }
    context = ours["context"]
    return vision(expected["latents"], timestep=expected["timesteps"], encoder_hidden_states=context, **more).sample


def test_a_live_language_lora_says_the_same(case, imported):
    expected = load_file(case / "expected.safetensors")
    encoder = TextEncoder.load(case / "text_encoder", dtype=torch.float32)
    bridge = Bridge.connect(BridgeCheckpoint.load(imported), encoder, lora="live")
    with torch.no_grad():
        assert difference(bridge(facts(case)["prompts"]).context, expected["context"]) < 1e-4


def test_the_case_is_told_by_its_models(case, imported):
    config, said = BridgeCheckpoint.load(imported).config, facts(case)
    assert [config.adapter.in_width, config.adapter.inner_width, config.adapter.out_width] == said["adapter"]
    assert config.language_lora.rank == config.language_lora.alpha == said["lora_rank"]
    assert config.language.family == said["text_encoder"]
    assert (config.prompt.max_length, config.prompt.language_mask) == (
        said["max_length"],
        "text_encoder" in said["attention_mask_given_to"],
    )
    encoder = TextEncoder.load(case / "text_encoder")
    assert config.language == encoder.config


@pytest.mark.parametrize("how", ["halves", "neighbours"])
def test_another_order_would_be_seen(case, tmp_path, how):
    """Up-matrices are all non-zero: two sites of one shape exchanged give other hidden states."""
    released = tmp_path / "released"
    released.mkdir()
    (released / "adapter").symlink_to(case / "released" / "adapter")
    (released / "lora_vis.pt").symlink_to(case / "released" / "lora_vis.pt")
    tensors = torch.load(case / "released" / "lora_text.pt", weights_only=True)
    if how == "neighbours":  # of the first two sites that have one shape
        sites = [tensors[i : i + 2] for i in range(0, len(tensors), 2)]
        i = next(i for i in range(len(sites)) if [t.shape for t in sites[i]] == [t.shape for t in sites[i + 1]])
        sites[i], sites[i + 1] = sites[i + 1], sites[i]
        tensors = [tensor for site in sites for tensor in site]
    else:
        half = len(tensors) // 2
        tensors = tensors[half:] + tensors[:half]
    torch.save(tensors, released / "lora_text.pt")
    ours = encoded(case, imported_from(case, released, tmp_path), tmp_path)
    assert difference(ours["hidden_states"], load_file(case / "expected.safetensors")["hidden_states"]) > 1e-3


def test_every_family_with_a_stated_order_but_bert_has_a_case():
    assert {facts(GOLDEN / case)["text_encoder"] for case in CASES} == set(LANGUAGE_ORDERS) - {"bert", "roberta"}


def test_no_weights_are_needed_to_import(case, imported, tmp_path):
    """config.json and tokenizer alone give the same bridge, less the fingerprints."""
    bare = tmp_path / "bare"
    for name in ("text_encoder", "tokenizer", "vision"):
        (bare / name).mkdir(parents=True)
        for file in (case / name).iterdir():
            if file.suffix != ".safetensors":
                (bare / name / file.name).write_bytes(file.read_bytes())
    again = load_file(imported_from(bare, case / "released", bare))
    whole = load_file(imported)
    assert again.keys() == whole.keys() and all(torch.equal(again[key], whole[key]) for key in whole)
    config, full = (BridgeCheckpoint.load(path).config for path in (bare / "bridge.safetensors", imported))
    assert config.language.fingerprint is config.vision.fingerprint is None
    assert full.language.fingerprint and full.vision.fingerprint
    ours = encoded(case, bare / "bridge.safetensors", tmp_path)
    assert difference(ours["context"], load_file(case / "expected.safetensors")["context"]) < 1e-4


def test_an_adapter_may_be_pickled_or_not(case, imported, tmp_path):
    released = tmp_path / "released"
    (released / "adapter").mkdir(parents=True)
    for name in ("lora_text.pt", "lora_vis.pt"):
        (released / name).symlink_to(case / "released" / name)
    (file,) = (case / "released" / "adapter").glob("diffusion_pytorch_model.*")
    if file.suffix == ".bin":
        save_file(torch.load(file, weights_only=True), released / "adapter" / "diffusion_pytorch_model.safetensors")
    else:
        torch.save(load_file(file), released / "adapter" / "diffusion_pytorch_model.bin")
    before = load_file(imported)
    again = load_file(imported_from(case, released, tmp_path))
    assert again.keys() == before.keys() and all(torch.equal(again[key], before[key]) for key in before)
