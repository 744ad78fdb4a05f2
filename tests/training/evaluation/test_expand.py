"""Long prompts: of the right length where the model gives one, the same for a seed, never made twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lavi_bridge.tests.training.evaluation.models import words
from lavi_bridge.training.commands import main
from lavi_bridge.training.evaluation.expand import lengthened
from lavi_bridge.training.evaluation.prompts import Prompt, read_prompts


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama that speaks the words of the tiny tokenizer, [SEP] ends its answer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("lm") / "tiny-llama"
    tokenizer = words()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=3,
        bos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_expand_is_seeded_and_keeps_what_it_has(lm: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    short, long = tmp_path / "short.txt", tmp_path / "long.jsonl"
    short.write_text("a cat\na dog\n")
    command = ["evaluate", "expand", str(short), "--lm", str(lm), "-o", str(long), "--tries", "2"]
    assert main(command) == 0
    first = long.read_text()
    rows = [json.loads(line) for line in first.splitlines()]
    assert [row["short"] for row in rows] == ["a cat", "a dog"] and rows[0]["prompt"] != rows[1]["prompt"]
    assert all(row["words"] == len(row["prompt"].split()) and row["lm"].startswith("tiny-llama ") for row in rows)
    assert all(row["fits"] == (20 <= row["words"] <= 70) for row in rows)
    assert (
        f"2 long prompts by {rows[0]['lm']}, {sum(row['fits'] for row in rows)} of 20 to 70" in capsys.readouterr().out
    )

    long.unlink()
    assert main(command) == 0 and long.read_text() == first  # the seed
    long.write_text(first.replace(rows[0]["prompt"], "kept"))
    assert main(command) == 0 and json.loads(long.read_text().splitlines()[0])["prompt"] == "kept"
    kept = long.read_text()
    assert main([*command, "--seed", "1"]) == 2
    assert f"is by {rows[0]['lm']}, seed 0, now it is {rows[0]['lm']}, 1" in capsys.readouterr().err
    short.write_text("a dog\n")
    assert main(command) == 2
    assert "has a long prompt of 'a cat', which is not asked for" in capsys.readouterr().err
    assert long.read_text() == kept
    short.write_text("a cat\na dog\na bird\n")
    assert main(command) == 0
    assert [json.loads(line)["short"] for line in long.read_text().splitlines()] == ["a cat", "a dog", "a bird"]
    assert json.loads(long.read_text().splitlines()[0])["prompt"] == "kept"
    assert read_prompts([long])[0].category == "long" and read_prompts([long])[0].meta["short"] == "a cat"


def test_what_did_not_fit_is_tried_more_often(lm: Path, tmp_path: Path) -> None:
    short, long = tmp_path / "short.txt", tmp_path / "long.jsonl"
    short.write_text("a cat\n")
    command = ["evaluate", "expand", str(short), "--lm", str(lm), "-o", str(long), "--tries"]
    assert main([*command, "1"]) == 0
    row = json.loads(long.read_text())
    long.write_text(json.dumps(row | {"fits": False, "prompt": "old"}) + "\n")
    assert main([*command, "1"]) == 0 and json.loads(long.read_text())["prompt"] == "old"
    assert main([*command, "2"]) == 0 and json.loads(long.read_text())["prompt"] != "old"
    assert json.loads(long.read_text())["tries"] == 2


def test_a_text_of_the_right_length_ends_the_tries() -> None:
    said = iter(["word " * 90, "word " * 30, "word " * 25])
    row = lengthened(Prompt("a cat"), lambda text, seed: next(said), 0, 3)
    assert (row["words"], row["fits"]) == (30, True) and len(list(said)) == 1


def test_where_none_fits_the_nearest_is_taken_and_told() -> None:
    said = iter(["word " * 90, "word " * 15, "word " * 100])
    row = lengthened(Prompt("a cat"), lambda text, seed: next(said), 0, 3)
    assert (row["words"], row["fits"]) == (15, False)


def test_another_file_is_not_written_over(lm: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "short.txt").write_text("a cat\n")
    other = tmp_path / "notes.jsonl"
    other.write_text("my notes\n")
    assert main(["evaluate", "expand", str(tmp_path / "short.txt"), "--lm", str(lm), "-o", str(other)]) == 2
    assert "line 1 is none of `evaluate expand`" in capsys.readouterr().err and other.read_text() == "my notes\n"
