"""A bridge file: there and back, whole or not at all, and one clear refusal for every bad file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lavi_bridge.lavi_core import adapters
from lavi_bridge.lavi_core.checkpoint import BridgeCheckpoint
from lavi_bridge.lavi_core.config import BridgeConfig, from_dict
from lavi_bridge.lavi_core.files import replacing, write_safetensors
from lavi_bridge.lavi_core.lora import Delta
from safetensors import safe_open
from safetensors.torch import load_file, save_file


def config(target="sd1", **changes):
    data = {
        "language": {
            "model_id": "tiny",
            "family": "llama",
            "hidden_size": 8,
            "num_layers": 2,
            "vocab_size": 10,
            "fingerprint": "f",
        },
        "prompt": {"template": "say {prompt}", "hidden_states": "normalized_mean"},
        "adapter": {"kind": "mlp", "in_width": 8, "inner_width": 6, "out_width": 4, "pooled_width": 3},
        "vision": {
            "model_id": "v",
            "target": target,
            "context_width": 4,
            "objective": "v_prediction",
            "latent_channels": 4,
            "latent_scale": 0.5,
            "fingerprint": "g",
        },
        "language_lora": {"rank": 2, "alpha": 1.0},
        "vision_lora": {"rank": 2, "alpha": 3.0},
        "provenance": {"steps": 7, "seed": 1},
    }
    return from_dict(BridgeConfig, data | changes)


def bridge(target="sd1", **changes):
    torch.manual_seed(0)
    made = config(target, **changes)
    return BridgeCheckpoint(
        made,
        dict(adapters.build(made.adapter).state_dict()),
        {"layers.0.self_attn.q_proj": Delta(torch.randn(2, 8), torch.randn(8, 2), 0.5)},
        {
            "transformer_blocks.0.attn1.to_out.0": Delta(torch.randn(2, 8), torch.randn(8, 2), 1.5),
            "down_blocks.0.resnets.0.conv1": Delta(torch.randn(2, 8, 3, 3), torch.randn(4, 2, 1, 1), 1.5),
        },
    )


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for path, delta in ours.items():
        other = theirs[path]
        assert torch.equal(delta.down, other.down) and torch.equal(delta.up, other.up) and delta.scale == other.scale


@pytest.mark.parametrize("target", ["sd1", "pixart"])
def test_there_and_back(target, tmp_path):
    path, made = tmp_path / "b.safetensors", bridge(target)
    made.save(path)
    back = BridgeCheckpoint.load(path)
    assert back.config == made.config
    assert back.adapter.keys() == made.adapter.keys()
    assert all(torch.equal(back.adapter[k], v) for k, v in made.adapter.items())
    same(made.language_lora, back.language_lora)
    same(made.vision_lora, back.vision_lora)
    assert [p.name for p in tmp_path.iterdir()] == ["b.safetensors"]


def test_names_in_the_file(tmp_path):
    bridge("sd1").save(tmp_path / "a.safetensors")
    names = load_file(tmp_path / "a.safetensors").keys()
    assert "adapter.ff1.net.0.proj.weight" in names and "adapter.pooled.proj.weight" in names
    for half in ("lora_down.weight", "lora_up.weight", "alpha"):
        assert f"language_lora.layers.0.self_attn.q_proj.{half}" in names
        assert f"lora_unet_down_blocks_0_resnets_0_conv1.{half}" in names
    alpha = load_file(tmp_path / "a.safetensors")["lora_unet_down_blocks_0_resnets_0_conv1.alpha"]
    assert alpha.item() == 3.0 and alpha.ndim == 0  # scale 1.5 at rank 2
    bridge("pixart").save(tmp_path / "b.safetensors")
    names = load_file(tmp_path / "b.safetensors").keys()
    for half in ("lora_A.weight", "lora_B.weight", "alpha"):
        assert f"transformer.transformer_blocks.0.attn1.to_out.0.{half}" in names


def test_stored_in_half(tmp_path):
    made = bridge()
    made.save(tmp_path / "b.safetensors", dtype=torch.float16)
    back = BridgeCheckpoint.load(tmp_path / "b.safetensors")
    assert {t.dtype for t in back.adapter.values()} == {torch.float16}
    assert back.language_lora["layers.0.self_attn.q_proj"].down.dtype == torch.float16
    assert back.vision_lora["down_blocks.0.resnets.0.conv1"].scale == 1.5
    assert made.adapter["norm1.weight"].dtype == torch.float32


def test_the_same_bridge_is_the_same_file(tmp_path):
    """Whose metadata safetensors would put in another order each time, see findings/safetensors-other-bytes.sh."""
    file, made = tmp_path / "bridge.safetensors", bridge()
    found = set()
    for _ in range(8):
        made.save(file)
        found.add(file.read_bytes())
    assert len(found) == 1 and BridgeCheckpoint.load(file).config == made.config
    texts = {"z": '\u0001\n"\u00fc\\', "b": "", "a": "\u2028 \u6f22\x7f/"}
    kept = []
    for _ in range(8):
        write_safetensors(file, {"\u00e9": torch.ones(3), "a": torch.zeros(2, 2).half()}, texts)
        kept.append(file.read_bytes())
    assert len(set(kept)) == 1
    with safe_open(str(file), "pt") as opened:
        assert opened.metadata() == texts and torch.equal(opened.get_tensor("\u00e9"), torch.ones(3))


def test_without_loras(tmp_path):
    made = bridge(language_lora=None, vision_lora=None)
    BridgeCheckpoint(made.config, made.adapter).save(tmp_path / "b.safetensors")
    back = BridgeCheckpoint.load(tmp_path / "b.safetensors")
    assert not back.language_lora and not back.vision_lora


def refuses(path, message):
    with pytest.raises(ValueError, match=message) as caught:
        BridgeCheckpoint.load(path)
    assert len(str(caught.value).splitlines()) == 1


def rewrite(path, tensors=lambda t: t, metadata=lambda m: m):
    """The file again, with something changed."""
    with safe_open(path, "pt") as file:
        header = file.metadata()
    save_file(tensors(load_file(path)), path, metadata(header))


def test_files_that_are_no_bridge(tmp_path):
    path = tmp_path / "b.safetensors"
    refuses(path, "there is no bridge file .*b.safetensors")
    bridge().save(path)
    whole = path.read_bytes()
    for size in (0, 4, 200, len(whole) - 1):
        path.write_bytes(whole[:size])
        refuses(path, "is cut short, damaged or no safetensors file at all")
    save_file({"x": torch.zeros(1)}, path)
    refuses(path, r"is no bridge, but a safetensors file of no known kind \(its header has no 'lavi_bridge'\): fetch")


def test_headers(tmp_path):
    path = tmp_path / "b.safetensors"

    def header(change):
        bridge().save(path)
        rewrite(path, metadata=change)

    def config_with(**more):
        return lambda m: m | {"lavi_bridge": json.dumps(json.loads(m["lavi_bridge"]) | more)}

    header(config_with(schema=6, tomorrow="a key of the next schema"))
    refuses(path, "has schema 6, this version reads up to 5; update the pack")
    header(config_with(colour=1))
    refuses(path, "b.safetensors: unknown key colour")
    header(lambda m: m | {"lavi_bridge": "{"})
    refuses(path, "the config in its header is not readable")
    header(lambda m: m | {"lavi_bridge": "[]"})
    refuses(path, "the config in its header is not readable")
    header(lambda m: {k: v for k, v in m.items() if k != "lavi_bridge_lora"})
    with pytest.raises(ValueError, match="does not list its LoRA modules"):
        BridgeCheckpoint.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t | {"adapter.extra": torch.zeros(1)},
            "1 tensors that its config does not explain, first adapter.extra",
        ),
        (lambda t: t | {"x": torch.zeros(1)}, "1 tensors that its config does not explain, first x"),
        (lambda t: without(t, "adapter.norm2.bias"), "lacks the tensor adapter.norm2.bias; fetch or save it again"),
        (
            lambda t: without(t, "language_lora.layers.0.self_attn.q_proj.alpha"),
            r"lacks the tensor language_lora.*alpha",
        ),
        (
            lambda t: without(t, "lora_unet_down_blocks_0_resnets_0_conv1.lora_up.weight"),
            r"lacks .*conv1.lora_up.weight",
        ),
        (lambda t: t | {"adapter.norm2.bias": torch.zeros(7)}, r"has shape \(7,\), its config asks for \(6,\)"),
    ],
)
def test_tensors_left_over_missing_or_misshapen(change, message, tmp_path):
    path = tmp_path / "b.safetensors"
    bridge().save(path)
    rewrite(path, tensors=change)
    with pytest.raises(ValueError, match=message) as caught:
        BridgeCheckpoint.load(path)
    assert str(path) in str(caught.value)


def without(tensors, name):
    return {k: v for k, v in tensors.items() if k != name}


def test_a_wrong_bridge_is_not_written(tmp_path):
    made = bridge()
    del made.adapter["norm1.bias"]
    with pytest.raises(ValueError, match=r"lacks the tensor adapter\.norm1\.bias"):
        made.save(tmp_path / "b.safetensors")
    assert not list(tmp_path.iterdir())


FULL_DISK = """
import resource, sys
sys.path.insert(0, sys.argv[2])
import conftest
import torch
from pathlib import Path
from lavi_bridge.lavi_core.checkpoint import BridgeCheckpoint
path = Path(sys.argv[1])
made = BridgeCheckpoint.load(path)
made.adapter = {k: v + 1 for k, v in made.adapter.items()}
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    made.save(path)
except OSError as error:
    sys.exit(0 if f"cannot write {path}" in str(error) else str(error))
sys.exit("written past the limit")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no file-size limit there")
def test_a_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "b.safetensors"
    bridge().save(path)
    before = path.read_bytes()
    assert len(before) > 4000
    tests = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path), str(tests)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["b.safetensors"]


def test_a_folder_that_is_not_there_is_made(tmp_path):
    bridge().save(tmp_path / "no" / "b.safetensors")
    assert BridgeCheckpoint.load(tmp_path / "no" / "b.safetensors").config == bridge().config


def test_two_that_write_one_file_do_not_meet(tmp_path: Path) -> None:
    """Processes of two machines, of one number."""
    with replacing(tmp_path / "facts.json") as first, replacing(tmp_path / "facts.json") as second:
        first.write_text("{}")
        second.write_text("[]")
    assert [path.name for path in tmp_path.iterdir()] == ["facts.json"]
