"""The demo shows pictures before it judges, a row at a time, on the device asked for."""

from __future__ import annotations

import argparse
import logging

import pytest
from lavi_bridge.training.demo import show as demo
from lavi_bridge.training.evaluation.shapebench import ROWS, bounds, evaluate
from lavi_bridge.training.models import named
from PIL import Image


def given(output, **changes):
    base = {"bridges": ["minilm"], "prompts": 1, "seed": 0, "precision": "auto", "device": "cpu", "json": False}
    return argparse.Namespace(**{"output": str(output), **base, **changes})


def test_pictures_come_before_the_judge(tmp_path, monkeypatch, caplog):
    try:
        named.language("demo:minilm")
    except ValueError as error:
        pytest.skip(f"NO LANGUAGE MODEL FOR THE DEMO: {error}")
    output, heights = tmp_path / "demo.png", []
    monkeypatch.setattr(demo, "PROMPTS", demo.PROMPTS[:2])
    monkeypatch.setattr(demo, "COLUMNS", 1)
    write = demo.write_bytes

    def written(path, content):
        write(path, content)
        heights.append(Image.open(path).height)

    def judged(pipeline, settings, progress):
        assert heights[-1] > heights[0] and len(heights) == 2
        return evaluate(pipeline, settings, ROWS[:1], progress)

    monkeypatch.setattr(demo, "write_bytes", written)
    monkeypatch.setattr(demo, "evaluate", judged)
    monkeypatch.setattr(demo, "bounds", lambda settings: bounds(settings, ROWS[:1]))
    with caplog.at_level(logging.INFO):
        said = demo.show(given(output))
    assert any(f"the first pictures are in {output}" in record.getMessage() for record in caplog.records)
    assert "own encoder | MiniLM" in said and str(output) in said


def test_what_cannot_be_is_told_before_anything_is_loaded(tmp_path):
    with pytest.raises(ValueError, match="unknown demo bridge 'nope'"):
        demo.show(given(tmp_path / "demo.png", bridges=["nope"]))
    with pytest.raises(ValueError, match="--prompts must be at least 1"):
        demo.show(given(tmp_path / "demo.png", prompts=0))
    with pytest.raises(ValueError, match="there is no device"):
        demo.show(given(tmp_path / "demo.png", device="nope"))
