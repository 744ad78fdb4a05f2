"""qwen-sdxl-adapter, DistillT5 and Anima's llm_adapter by the command line: imported, heard, described, exported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lavi_bridge.lavi_core.checkpoint import read_config
from lavi_bridge.lavi_core.language.gguf_file import gguf_plain
from lavi_bridge.tests.lavi_core.language.qwen35 import write_qwen35
from lavi_bridge.tests.training import dits
from lavi_bridge.tests.training.commands.test_foreign_files import encoded, imported, language
from lavi_bridge.training.commands import main
from lavi_bridge.training.models.pipeline import check_vision
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
QWEN, T5, ANIMA = (GOLDEN / "connectors" / name for name in ("qwen_sdxl", "distill_t5", "anima"))
TOKENIZER = GOLDEN / "t5_unet" / "tokenizer"


def exported(bridge: Path, dialect: str, own: Path, prefix: str = "") -> None:
    """To the bit what was imported."""
    output = bridge.with_name("back.safetensors")
    assert main(["export", str(bridge), "--format", dialect, "-o", str(output)]) == 0
    back = load_file(output)
    wanted = {name: tensor for name, tensor in load_file(own).items() if name.startswith(prefix)}
    assert back.keys() == wanted.keys() and all(torch.equal(back[name], wanted[name]) for name in wanted)


def test_qwen_sdxls_states(tmp_path: Path) -> None:
    file = QWEN / "adapter.safetensors"
    folder, *_ = language("t5", tmp_path / "model", width=64)
    bridge, output = imported(file, folder, to=tmp_path), tmp_path / "out.safetensors"
    expected = QWEN / "expected.safetensors"
    assert main(["encode", str(bridge), "--states", str(expected), "-o", str(output)]) == 0
    found, wanted = load_file(output), load_file(expected)
    for part in ("context", "pooled"):
        torch.testing.assert_close(found[part], wanted[part], rtol=0, atol=1e-5)
    exported(bridge, "qwen_sdxl", file)


def test_distill_t5_from_its_own_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text_encoder").symlink_to(T5)
    (tmp_path / "tokenizer").symlink_to(GOLDEN / "t5_unet" / "tokenizer")
    folder, expected = tmp_path / "text_encoder", load_file(T5 / "expected.safetensors")
    bridge = imported(T5 / "model.safetensors", folder, "--prompt", "max_length=24", to=tmp_path)
    found = encoded(bridge, folder, ["a red fox in the snow", "", "two cats"])
    assert torch.equal(found["input_ids"], expected["input_ids"])
    torch.testing.assert_close(found["context"], expected["context"], rtol=0, atol=1e-5)
    exported(bridge, "distill_t5", T5 / "model.safetensors", "final_projection.")
    capsys.readouterr()
    assert main(["inspect", str(bridge)]) == 0
    assert "context width 36, another encoder's pooled 768" in " ".join(capsys.readouterr().out.split())
    network = dits.write("flux", tmp_path / "flux", changes={"joint_attention_dim": 36, "pooled_projection_dim": 768})
    assert network.config.pooled_projection_dim == 768
    with pytest.raises(ValueError, match="gives none: draw in ComfyUI, where Bridge Text Encode takes that of another"):
        check_vision(bridge, read_config(bridge), tmp_path / "flux")


def test_gguf_trainers_adapter_from_its_gguf_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, prompts = GOLDEN / "connectors" / "gguf_trainer" / "adapter.gguf", ["a red fox", "", "a red fox in the snow"]
    folder, tokenizer, _ = language("t5", tmp_path / "model", width=24)
    bridge = imported(file, folder, "--query-tokenizer", str(TOKENIZER), to=tmp_path)
    found = encoded(bridge, folder, prompts)
    ids = [tokenizer(prompt, truncation=True, max_length=12).input_ids for prompt in prompts]
    assert [row[row >= 0].tolist() for row in found["queries"]] == ids and found["context"].shape == (3, 12, 32)
    expected, output = file.with_name("expected.safetensors"), tmp_path / "states.safetensors"
    assert main(["encode", str(bridge), "--states", str(expected), "-o", str(output)]) == 0
    said, wanted = load_file(output), load_file(expected)
    torch.testing.assert_close(said["context"][said["mask"]], wanted["context"][said["mask"]], rtol=0, atol=1e-5)
    capsys.readouterr()
    assert main(["export", str(bridge), "--format", "gguf_trainer", "-o", str(tmp_path / "x.safetensors")]) == 2
    assert "gguf_trainer is a format of .gguf files" in capsys.readouterr().err
    assert main(["export", str(bridge), "--format", "gguf_trainer", "-o", str(tmp_path / "back.gguf")]) == 0
    back, own = gguf_plain(tmp_path / "back.gguf"), gguf_plain(file)
    assert back.keys() == own.keys() and all(torch.equal(back[name], own[name]) for name in own)


def test_anima_with_its_second_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, prompts = ANIMA / "adapter.safetensors", ["a red fox in the snow", "", "two cats"]
    folder, tokenizer, _ = language("t5", tmp_path / "model", width=24)
    words = ["import", str(file), "--language-model", str(folder), "-o", str(tmp_path / "x.safetensors")]
    assert main(words) == 2
    assert "asks with the ids of a second tokenizer, T5's, that the file does not hold" in capsys.readouterr().err
    bridge = imported(file, folder, "--query-tokenizer", str(TOKENIZER), to=tmp_path)
    found = encoded(bridge, folder, prompts)
    ids = [tokenizer(prompt).input_ids for prompt in prompts]
    assert [row[row >= 0].tolist() for row in found["queries"]] == ids
    assert found["mask"].sum(1).tolist() == list(map(len, ids)) and found["context"].shape[2] == 32
    expected, output = ANIMA / "expected.safetensors", tmp_path / "states.safetensors"
    assert main(["encode", str(bridge), "--states", str(expected), "-o", str(output)]) == 0
    said, wanted = load_file(output), load_file(expected)
    assert torch.equal(said["mask"], wanted["queries"] >= 0)
    torch.testing.assert_close(said["context"][said["mask"]], wanted["context"][said["mask"]], rtol=0, atol=1e-5)
    for queries, message in (
        (wanted["queries"][:1], "has queries of shape [1, 6] and int64, the bridge takes [3, Q] of whole numbers"),
        (wanted["queries"].float(), "has queries of shape [3, 6] and float32, the bridge takes"),
        (wanted["queries"] + 400, "ids: they are of another tokenizer than it was trained with"),
    ):
        odd = tmp_path / "odd.safetensors"
        save_file(wanted | {"queries": queries}, odd)
        capsys.readouterr()
        assert main(["encode", str(bridge), "--states", str(odd), "-o", str(output)]) == 2
        assert message in capsys.readouterr().err
    exported(bridge, "anima", file)
    capsys.readouterr()
    assert main(["inspect", str(bridge)]) == 0
    assert "adapter token_queries, 24 -> 16 -> 32" in " ".join(capsys.readouterr().out.split())


def test_animas_conditioner_without_t5(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder, file = write_qwen35(tmp_path / "qwen35", 24), GOLDEN / "connectors" / "anima_t5free" / "adapter.safetensors"
    prompts = [
        case["prompt"].replace("\n", " ") for case in json.loads(file.with_name("case.json").read_text())["prompts"]
    ]
    bridge = imported(file, folder, to=tmp_path)
    found, wanted = encoded(bridge, folder, prompts), load_file(file.with_name("expected.safetensors"))
    assert found["queries"].shape == wanted["queries"].shape and found["context"].shape[1:] == (14, 32)
    for row in (0, 2, 3):  # the other has a line break
        assert torch.equal(found["queries"][row], wanted["queries"][row])
        kept = found["mask"][row]
        torch.testing.assert_close(found["context"][row][kept], wanted["context"][row][kept], rtol=0, atol=1e-5)
    output = tmp_path / "states.safetensors"
    assert (
        main(["encode", str(bridge), "--states", str(file.with_name("expected.safetensors")), "-o", str(output)]) == 0
    )
    said = load_file(output)
    torch.testing.assert_close(said["context"], wanted["context"], rtol=0, atol=1e-5)
    for queries, message in (
        (
            wanted["queries"][..., 0],
            "has queries of shape [4, 14] and int64, the bridge takes [4, Q, 3] of whole numbers",
        ),
        (wanted["queries"] + torch.tensor([0, 0, 6]), "has rows that are none of its 26 states with one of the"),
        (wanted["queries"] + torch.tensor([0, 26, 0]), "has rows that are none of its 26 states with one of the"),
    ):
        save_file(wanted | {"queries": queries.contiguous()}, tmp_path / "odd.safetensors")
        capsys.readouterr()
        assert main(["encode", str(bridge), "--states", str(tmp_path / "odd.safetensors"), "-o", str(output)]) == 2
        assert message in capsys.readouterr().err
    with caplog.at_level("WARNING"):
        exported(bridge, "anima_t5free", file)
    assert "turns prompts into tokens" not in caplog.text  # its layers are in the file
